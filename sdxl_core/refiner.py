"""What a plan says about a second model that finishes its picture. Imports no torch."""

from typing import Literal

from sdxl_core.compat import empty_negative
from sdxl_core.config import DenoiserConfig
from sdxl_core.errors import UsageError
from sdxl_core.presets import Preset
from sdxl_core.strict import Config


class RefinerPlan(Config):
    """The second model of a picture; words, sizes, scores, guidance, sampler and schedule are those of the plan.

    Args:
        model: name of the model preset.
        file: name of the model file, and its sha256 where it is known.
        mode: where it takes over, see `sdxl_core.diffusion.handover`.
        empty_negative: whether an empty negative prompt becomes zeros or is encoded, as a refiner was trained.
        denoiser: preconditioning and trained noise levels of the model.
    """

    model: str
    file: str
    file_sha256: str | None = None
    mode: str
    empty_negative: Literal["zeros", "encode"] = "encode"
    denoiser: DenoiserConfig = DenoiserConfig()


def build_refiner_plan(preset: Preset, refiner: Preset, file: str | None) -> RefinerPlan:
    """Join a preset with the model that finishes its pictures.

    Args:
        preset: whose recipe says how to hand over.
        refiner: the second model.
        file: name of its file, None for the published one.

    Raises:
        UsageError: the two models have different latents.
    """
    model = refiner.model
    if model.first_stage != preset.model.first_stage:
        raise UsageError(
            f"{model.name} cannot refine what {preset.model.name} draws: their latents are not the same",
            hint="both need the same [model.first_stage]",
        )
    return RefinerPlan(
        model=model.name,
        file=model.file.name if file is None else file,
        file_sha256=model.file.sha256 if file is None else None,
        mode=preset.recipe.refiner.mode,
        empty_negative=empty_negative(preset.recipe.compat, model.kind),
        denoiser=model.denoiser,
    )
