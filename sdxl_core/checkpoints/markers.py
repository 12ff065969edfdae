"""What a checkpoint says of its prediction and its latents, in tensors of a few numbers and in metadata.

Imports no torch. The numbers of these markers are the only tensor bytes that are read before a model is loaded.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sdxl_core.checkpoints.header import Header, open_checkpoint
from sdxl_core.config import ModelConfig, PredictionName
from sdxl_core.errors import CheckpointError
from sdxl_core.prediction import predicting, prediction_name

PLAYGROUND_SCALE = 0.5
"""Factor of the latents of models that carry statistics. Source: the published config of Playground v2.5."""

_MOST_NUMBERS = 16
_DTYPES = {"F64": "d", "F32": "f", "F16": "e", "BF16": "f"}
"""By the letters of `struct`: numpy alone would take 40 ms to import."""

_METADATA_KEY = "modelspec.prediction_type"
_METADATA: Mapping[str, PredictionName] = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v"}
_NAMES: tuple[tuple[re.Pattern[str], PredictionName], ...] = (
    (re.compile(r"v[-_ ]?pred", re.IGNORECASE), "v"),
    (
        re.compile(r"big[-_ ]?asp[-_ ]?v?2[._]?5|noobai[-_ ]?rf|rectified[-_ ]?flow|(?<![a-z])flow(?![a-z])", re.I),
        "flow",
    ),
)
"""What people write into file names; told as a hint and never acted on."""


@dataclass(frozen=True, slots=True)
class Markers:
    """What a file says about itself.

    Args:
        prediction: what the network predicts; None where the file says nothing.
        reason: what in the file says so; empty where it says nothing.
        sigma_min, sigma_max: the trained range, where the file gives it.
        latent_mean, latent_std: of the encodings, one number a channel, where the file gives them.
    """

    prediction: PredictionName | None = None
    reason: str = ""
    sigma_min: float | None = None
    sigma_max: float | None = None
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None


def read_markers(header: Header) -> Markers:
    """Read what a checkpoint says of its prediction; microseconds, and a few bytes of tensors.

    Raises:
        CheckpointError: a marker that has no counterpart, or numbers that cannot be what it stands for.
    """
    keys = header.tensors
    if "edm_mean" in keys or "edm_std" in keys:
        mean, std = (_numbers(header, key) for key in ("edm_mean", "edm_std"))
        if min(std) <= 0 or len(mean) != len(std):
            _refuse(header, "edm_mean and edm_std", f"{mean} and {std}, no mean and deviation of latents")
        return Markers("edm", "has edm_mean and edm_std", latent_mean=mean, latent_std=std)
    if any(key.startswith("edm_vpred.") for key in keys):
        low, high = (_level(header, f"edm_vpred.{key}") for key in ("sigma_min", "sigma_max"))
        if low is not None and high is not None and low >= high:
            _refuse(header, "edm_vpred.sigma_max", f"{high}, which is not above its edm_vpred.sigma_min {low}")
        return Markers("edm_v", "has edm_vpred.*", sigma_min=low, sigma_max=high)
    said = header.metadata.get(_METADATA_KEY, "").strip().lower()
    prediction = _METADATA.get(said)
    if "v_pred" in keys or prediction == "v":
        reason = "has v_pred" if "v_pred" in keys else f"its {_METADATA_KEY} is {said}"
        return Markers("v_ztsnr", f"{reason} and ztsnr") if "ztsnr" in keys else Markers("v", reason)
    return Markers() if prediction is None else Markers(prediction, f"its {_METADATA_KEY} is {said}")


def adapt_model(
    model: ModelConfig, markers: Markers, prediction: PredictionName | None = None, shift: float | None = None
) -> tuple[ModelConfig, str]:
    """The model as a file of its architecture was trained: what was asked for, else what the file says, else as it is.

    Args:
        model: what a preset says.
        markers: of the file, see `read_markers`.
        prediction: what was asked for, which no marker can change; None for nothing.
        shift: of a flow.

    Returns:
        The model to load and plan with, and what decided on its prediction, in words.

    Raises:
        UsageError: a shift for a model that predicts no flow.
        CheckpointError: statistics of another number of latent channels.
    """
    if prediction is not None:
        name, reason = prediction, "as asked for"
    elif markers.prediction is not None:
        name, reason = markers.prediction, f"the file {markers.reason}"
    else:
        name, reason = prediction_name(model.denoiser), f"as preset {model.name} says"
    given = {"shift": shift}
    if name == markers.prediction:
        given |= {"sigma_min": markers.sigma_min, "sigma_max": markers.sigma_max}
    denoiser, first_stage = predicting(model.denoiser, name, **given), model.first_stage
    if markers.latent_mean is not None:
        if len(markers.latent_mean) != first_stage.z_channels:
            raise CheckpointError(
                f"the file has statistics of {len(markers.latent_mean)} latent channels, "
                f"and preset {model.name} has {first_stage.z_channels}",
                hint="choose the preset that describes this file",
            )
        statistics = {"latent_mean": markers.latent_mean, "latent_std": markers.latent_std}
        first_stage = first_stage.model_copy(update={"scale_factor": PLAYGROUND_SCALE, **statistics})
    # CosXL's editing model was shown scaled latents in training, those before it unscaled ones.
    scale_shown = model.scale_shown or markers.prediction == "edm_v"
    return model.model_copy(
        update={"denoiser": denoiser, "first_stage": first_stage, "scale_shown": scale_shown}
    ), reason


def named_prediction(path: Path) -> PredictionName | None:
    """What the name of a file suggests that its network predicts, if anything but eps: a hint, never a fact."""
    return next((prediction for pattern, prediction in _NAMES if pattern.search(path.stem)), None)


def _numbers(header: Header, key: str) -> tuple[float, ...]:
    """The values of a small tensor of finite numbers."""
    info = header.tensors.get(key)
    if info is None:
        _refuse(header, key, "missing beside its counterpart")
    kind = _DTYPES.get(info.dtype)
    if kind is None or not 1 <= info.numel <= _MOST_NUMBERS:
        _refuse(header, key, f"{info.numel} numbers of {info.dtype}, no marker")
    with open_checkpoint(header.path) as file:
        file.seek(header.data_start + info.offsets[0])
        raw = file.read(info.nbytes)
    if len(raw) != info.nbytes:
        _refuse(header, key, "cut off")
    if info.dtype == "BF16":  # the upper half of a float32
        raw = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
    numbers: tuple[float, ...] = struct.unpack(f"<{info.numel}{kind}", raw)
    if not all(map(math.isfinite, numbers)):
        _refuse(header, key, f"{numbers}, which are not all finite")
    return numbers


def _level(header: Header, key: str) -> float | None:
    if key not in header.tensors:
        return None
    numbers = _numbers(header, key)
    if len(numbers) != 1 or numbers[0] <= 0:
        _refuse(header, key, f"{numbers}, no noise level")
    return numbers[0]


def _refuse(header: Header, key: str, what: str) -> NoReturn:
    raise CheckpointError(
        f"{header.path}: its marker {key} is {what}", hint="the file is damaged or wrongly converted: fetch it again"
    )
