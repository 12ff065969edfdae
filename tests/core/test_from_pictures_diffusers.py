"""Pictures from pictures, number by number beside diffusers' pipelines with the same random weights.

diffusers gets the most likely latents of the picture, made by its own autoencoder, in the picture's place: left to
itself it would draw them, as is compared where a plan says so.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from support_chain import SDXL_BETAS, chain_parts
from support_networks import relative_error
from support_tiny import Kind, tiny_config, tiny_tensors, write_tiny_checkpoint
from torch import Tensor

from sdxl_core.canvas import Canvas, build_canvas
from sdxl_core.config import Encoding, MaskConfig, SamplerConfig, SourceConfig
from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps
from sdxl_core.engine import Engine, load_engine
from sdxl_core.from_pictures import sample_from
from sdxl_core.plan import Plan
from sdxl_core.source import SourceFile, build_source
from sdxl_core.source_pictures import Pixels, SourcePicture

STEPS = 20
LATENT_TOLERANCE = 1e-3  # relative, after all steps
SIDE = 64

# As SDXL's own configuration has it: pure noise starts at sqrt(1 + sigma^2).
EULER = {**SDXL_BETAS, "timestep_spacing": "leading", "steps_offset": 1}


class EulerOfOurs(EulerDiscreteScheduler):
    """diffusers' scheduler on the timesteps of the published discretization, for a pipeline that takes no list."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        super().set_timesteps(timesteps=list(legacy_ddpm_timesteps(num_inference_steps)), device=device)


@dataclass(frozen=True)
class Both:
    """Our engine, and the parts of their pipelines over the same weights."""

    ours: Engine
    parts: dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    """By kind of model, made when first asked for."""

    class Made(dict[str, Both]):
        def __missing__(self, kind: Kind) -> Both:
            config = tiny_config(kind)
            path = write_tiny_checkpoint(tmp_path_factory.mktemp(kind) / config.file.name, kind)
            engine = load_engine(config, path, device="cpu", dtype="float32")
            self[kind] = Both(engine, chain_parts(tiny_tensors(kind), config))
            return self[kind]

    return Made()


def a_picture() -> SourcePicture:
    """Smooth colours, as a photograph has."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = np.stack([x, y, (x - y) ** 2], axis=-1) * 255
    return source(pixels.astype(np.uint8))


def a_mask() -> SourcePicture:
    """Aligned to latent cells: how a cell that is masked in part counts is a matter of taste."""
    level = np.zeros((SIDE, SIDE), np.uint8)
    level[16:48, 8:40] = 255
    return source(level)


def source(pixels: Pixels) -> SourcePicture:
    return SourcePicture(SourceFile(name="a.png", sha256="0" * 64, size=(SIDE, SIDE)), pixels)


def planned(
    kind: Kind,
    strength: float,
    *,
    masked: bool = False,
    image_guidance: float = 1.5,
    encoding: Encoding = "mode",
    **changes: Any,
) -> tuple[Plan, Canvas]:
    config, picture, mask = tiny_config(kind), a_picture(), a_mask() if masked else None
    how = SourceConfig(strength=strength, image_guidance=image_guidance, mask=MaskConfig(blur=0), encoding=encoding)
    start = build_source(config, how, picture.file, None if mask is None else mask.file)
    given = {"original_size": (512, 384), "crop_coords_top_left": (8, 16), "target_size": (96, 64), **changes}
    plan = Plan(
        model=config.name,
        file=config.file.name,
        prompt="a red apple on a blue table, 35mm",
        negative="blurry",
        seed=5,
        steps=STEPS,
        size=(SIDE, SIDE),
        source=start,
        **given,
    )
    return plan, build_canvas(start, plan.size, picture, mask)


def ours(both: Both, plan: Plan, canvas: Canvas) -> Tensor:
    *_, last = sample_from(both.ours, [plan], [canvas])
    return last.x


def image_of(canvas: Canvas) -> Tensor:
    return torch.from_numpy(canvas.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def theirs(both: Both, pipeline: type[Any], scheduler: Any, plan: Plan, canvas: Canvas, **more: Any) -> Tensor:
    """The latent that a pipeline of diffusers ends with."""
    pipe = pipeline(**both.parts, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        prompt=plan.prompt,
        negative_prompt=plan.negative,
        original_size=plan.original_size,
        crops_coords_top_left=plan.crop_coords_top_left,
        target_size=plan.target_size,
        guidance_scale=plan.guider.scale,
        num_inference_steps=plan.steps,
        generator=torch.Generator().manual_seed(plan.seed),
        output_type="latent",
        **more,
    )
    latent: Tensor = result.images
    return latent


def their_latent(both: Both, image: Tensor, *, scaled: bool = True) -> Tensor:
    vae = both.parts["vae"]
    with torch.no_grad():
        mode: Tensor = vae.encode(image).latent_dist.mode()
    return mode * vae.config.scaling_factor if scaled else mode


def steps_of(plan: Plan) -> dict[str, Any]:
    return {"timesteps": list(legacy_ddpm_timesteps(plan.steps))}


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.75])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_img2img_ends_in_the_same_latent(tiny: dict[str, Both], sampler: str, strength: float) -> None:
    both = tiny["base"]
    plan, canvas = planned("base", strength, sampler=SamplerConfig(name=sampler))
    scheduler = {
        "euler": EulerDiscreteScheduler(**EULER),
        "dpmpp_2m": DPMSolverMultistepScheduler(**SDXL_BETAS, algorithm_type="dpmsolver++", solver_order=2),
    }[sampler]
    reference = theirs(
        both,
        StableDiffusionXLImg2ImgPipeline,
        scheduler,
        plan,
        canvas,
        image=their_latent(both, image_of(canvas)),
        strength=strength,
        **steps_of(plan),
    )
    assert relative_error(ours(both, plan, canvas), reference) <= LATENT_TOLERANCE


def test_a_drawn_encoding_is_theirs_for_the_seed(tiny: dict[str, Both]) -> None:
    both = tiny["base"]
    plan, canvas = planned("base", 0.3, encoding="sample")
    reference = theirs(
        both,
        StableDiffusionXLImg2ImgPipeline,
        EulerDiscreteScheduler(**EULER),
        plan,
        canvas,
        image=image_of(canvas) / 2 + 0.5,
        strength=0.3,
        **steps_of(plan),
    )
    end = ours(both, plan, canvas)
    assert relative_error(end, reference) <= LATENT_TOLERANCE
    assert relative_error(ours(both, *planned("base", 0.3)), end) > 10 * LATENT_TOLERANCE


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_nine_channels_with_drawn_encodings_are_theirs_for_the_seed(tiny: dict[str, Both], strength: float) -> None:
    both = tiny["inpaint"]
    plan, canvas = planned("inpaint", strength, masked=True, encoding="sample")
    reference = theirs(
        both,
        StableDiffusionXLInpaintPipeline,
        EulerDiscreteScheduler(**EULER),
        plan,
        canvas,
        image=image_of(canvas) / 2 + 0.5,
        mask_image=torch.from_numpy(a_mask().pixels)[None, None].float() / 255,
        strength=strength,
        height=SIDE,
        width=SIDE,
        **steps_of(plan),
    )
    assert relative_error(ours(both, plan, canvas), reference) <= LATENT_TOLERANCE


@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_masked_latents_end_in_the_same_latent(tiny: dict[str, Both], strength: float) -> None:
    both = tiny["base"]
    plan, canvas = planned("base", strength, masked=True)
    reference = theirs(
        both,
        StableDiffusionXLInpaintPipeline,
        EulerDiscreteScheduler(**EULER),
        plan,
        canvas,
        image=their_latent(both, image_of(canvas)),
        mask_image=torch.from_numpy(a_mask().pixels)[None, None].float() / 255,
        strength=strength,
        height=SIDE,
        width=SIDE,
        **steps_of(plan),
    )
    assert relative_error(ours(both, plan, canvas), reference) <= LATENT_TOLERANCE


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_network_of_nine_channels_ends_in_the_same_latent(tiny: dict[str, Both], strength: float) -> None:
    both = tiny["inpaint"]
    plan, canvas = planned("inpaint", strength, masked=True)
    mask = torch.from_numpy(a_mask().pixels)[None, None].float() / 255
    image = image_of(canvas)
    reference = theirs(
        both,
        StableDiffusionXLInpaintPipeline,
        EulerDiscreteScheduler(**EULER),
        plan,
        canvas,
        image=their_latent(both, image),
        mask_image=mask,
        masked_image_latents=their_latent(both, image * (mask < 0.5)),
        strength=strength,
        height=SIDE,
        width=SIDE,
        **steps_of(plan),
    )
    assert relative_error(ours(both, plan, canvas), reference) <= LATENT_TOLERANCE


@pytest.mark.parametrize("scaled", [False, True])
def test_a_network_of_eight_channels_ends_in_the_same_latent(tiny: dict[str, Both], scaled: bool) -> None:
    both = tiny["edit"]
    config = both.ours.config.model_copy(update={"scale_shown": scaled})
    plan, canvas = planned("edit", 1.0, image_guidance=1.5)
    reference = theirs(
        Both(both.ours, {**both.parts, "is_cosxl_edit": scaled}),
        StableDiffusionXLInstructPix2PixPipeline,
        EulerOfOurs(**EULER),
        plan,
        canvas,
        image=image_of(canvas) / 2 + 0.5,
        image_guidance_scale=1.5,
        height=SIDE,
        width=SIDE,
    )
    engine = replace(both.ours, config=config)
    assert relative_error(ours(Both(engine, {}), plan, canvas), reference) <= LATENT_TOLERANCE
