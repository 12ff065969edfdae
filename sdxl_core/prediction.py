"""What a network predicts, by name: the words of presets, flags and files. Imports no torch."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sdxl_core.config import DenoiserConfig, PredictionName
from sdxl_core.errors import UsageError
from sdxl_core.unknown import unknown


class PredictionKind(NamedTuple):
    """One row of the table.

    Args:
        title: the kind in words.
        denoiser: what a `DenoiserConfig` of this kind says beside its numbers.
    """

    title: str
    denoiser: Mapping[str, Any]


PREDICTIONS: Mapping[PredictionName, PredictionKind] = MappingProxyType(
    {
        "eps": PredictionKind("the noise", {"scaling": "eps"}),
        "v": PredictionKind("v", {"scaling": "v"}),
        "v_ztsnr": PredictionKind(
            "v, to zero signal (sigma 4518.76, as ComfyUI)", {"scaling": "v", "zero_terminal_snr": "comfy"}
        ),
        "v_ztsnr_diffusers": PredictionKind(
            "v, to zero signal (sigma 4096, as diffusers)", {"scaling": "v", "zero_terminal_snr": "diffusers"}
        ),
        "edm": PredictionKind("as the EDM paper, such as Playground v2.5", {"scaling": "edm"}),
        "edm_v": PredictionKind("v over a range of levels, such as CosXL", {"scaling": "edm_v"}),
        "flow": PredictionKind("the flow from clean to noise, such as bigASP v2.5", {"scaling": "flow"}),
    }
)


def prediction_name(denoiser: DenoiserConfig) -> PredictionName:
    """The row that a denoiser belongs to."""
    said = {"scaling": denoiser.scaling, "zero_terminal_snr": denoiser.zero_terminal_snr}
    return next(name for name, kind in PREDICTIONS.items() if {"zero_terminal_snr": None, **kind.denoiser} == said)


def resolve_prediction(name: str) -> PredictionName:
    """The row of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    found = next((known for known in PREDICTIONS if known == name), None)
    if found is None:
        raise unknown("prediction", name, PREDICTIONS)
    return found


def predicting(denoiser: DenoiserConfig, name: PredictionName, **numbers: float | None) -> DenoiserConfig:
    """A denoiser of another kind over the same betas.

    Args:
        denoiser: gives the betas, and the numbers of its kind where it is of kind `name` already.
        name: the kind.
        numbers: shift, sigma_min and sigma_max of the kind; None leaves what is there.

    Raises:
        UsageError: a shift that is no positive number, or that the kind does not have.
    """
    kept = {"num_idx", "linear_start", "linear_end", "sigma_data"}
    if prediction_name(denoiser) == name:
        kept |= {"shift", "sigma_min", "sigma_max"}
    given = {key: number for key, number in numbers.items() if number is not None}
    if "shift" in given and name != "flow":
        raise UsageError(
            f"a shift was given, which only flows have, and this model predicts {name}",
            hint="add --prediction flow if it was trained on flows",
        )
    if not 0 < given.get("shift", 1.0) < math.inf:
        raise UsageError(f"a shift must be a positive number, not {given['shift']:g}")
    return DenoiserConfig(**{**denoiser.model_dump(include=kept), **PREDICTIONS[name].denoiser, **given})
