"""Saved latents, as `records.encode_latent` writes them. Imports no torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sdxl_core.checkpoints.detect import detect
from sdxl_core.checkpoints.header import open_checkpoint, read_header
from sdxl_core.config import FirstStageConfig
from sdxl_core.errors import CheckpointError, NumericsError
from sdxl_core.records import RECORD_KEY, Record
from sdxl_core.resolutions import LARGEST_SIDE
from sdxl_core.source import SourceFile

_HINT = "give a latent that --save-latents has written"
_DTYPES = {"F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, slots=True, eq=False)
class SavedLatent:
    """A latent that was read.

    Args:
        path: of the file.
        values: (c, h/8, w/8) float32, scaled as the network sees it, finite.
        record: of the picture that it becomes; None where the file has none.
    """

    path: Path
    values: NDArray[np.float32]
    record: Record | None


def read_latent(path: Path) -> SavedLatent:
    """Read a saved latent.

    Raises:
        CheckpointError: missing, damaged, no latent of this program, or with a record that cannot be read.
        NumericsError: a value is not finite.
    """
    header = read_header(path)
    info = header.tensors.get("latent")
    if info is None:
        found = detect(header)
        raise CheckpointError(f"{path}: no latent: this is {found.title} ({found.reason})", hint=_HINT)
    if len(info.shape) != 3 or info.dtype not in _DTYPES or not 0 < info.numel <= 64 * LARGEST_SIDE**2:
        raise CheckpointError(f"{path}: no latent: its tensor is {info.dtype} {list(info.shape)}", hint=_HINT)
    with open_checkpoint(path) as file:
        file.seek(header.data_start + info.offsets[0])
        data = file.read(info.nbytes)
    if len(data) < info.nbytes:
        raise CheckpointError(f"{path}: shrank while it was read", hint="try again")
    values = np.frombuffer(data, _DTYPES[info.dtype]).reshape(info.shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise NumericsError(f"{path}: the latent is not finite", hint="sample the picture again")
    return SavedLatent(path, values, _record(path, header.metadata.get(RECORD_KEY)))


def latent_source(latent: SavedLatent, factor: int) -> SourceFile:
    """A saved latent as a plan names what it starts from.

    Args:
        latent: that was read.
        factor: pixels along one side of a latent cell.
    """
    _, height, width = latent.values.shape
    sha256 = hashlib.sha256(latent.values.tobytes()).hexdigest()
    return SourceFile(name=latent.path.name, sha256=sha256, size=(height * factor, width * factor))


def check_latent(latent: SavedLatent, first_stage: FirstStageConfig, model: str) -> None:
    """Refuse a latent that the first stage of `model` cannot make its picture of.

    Raises:
        CheckpointError: it has other channels or another scale, or is of another size than its record says.
    """
    channels, height, width = latent.values.shape
    if channels != first_stage.z_channels:
        raise CheckpointError(
            f"{latent.path}: has {channels} channels, the first stage of {model} takes {first_stage.z_channels}",
            hint="name the model that it was made with: --preset or --model",
        )
    if latent.record is None:
        return
    plan, factor = latent.record.plan, first_stage.factor
    if plan.size != (height * factor, width * factor):
        raise CheckpointError(
            f"{latent.path}: is a picture of {width * factor}x{height * factor} to the first stage of {model}, "
            f"and its record says {plan.size[1]}x{plan.size[0]}",
            hint="name the model that it was made with: --preset or --model",
        )
    theirs = (plan.scale_factor, plan.latent_mean, plan.latent_std)
    if theirs != (first_stage.scale_factor, first_stage.latent_mean, first_stage.latent_std):
        raise CheckpointError(
            f"{latent.path}: was made by {plan.model}, whose latents are scaled otherwise than those of {model}",
            hint="name the model that it was made with: --preset or --model",
        )


def _record(path: Path, text: str | None) -> Record | None:
    if text is None:
        return None
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise CheckpointError(
            f"{path}: its record cannot be read: {f'{place}: ' if place else ''}{first['msg']}",
            hint="it was written by another version, or is damaged",
        ) from None
