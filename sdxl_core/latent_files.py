"""Saved latents: written beside pictures, and read again. Imports no torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sdxl_core.canvas import Frame
from sdxl_core.checkpoints.detect import detect
from sdxl_core.checkpoints.header import Header, open_checkpoint, read_header
from sdxl_core.config import FirstStageConfig
from sdxl_core.errors import CheckpointError, NumericsError
from sdxl_core.picture_files import RECORD_KEY
from sdxl_core.records import Record
from sdxl_core.resolutions import LARGEST_SIDE
from sdxl_core.source import SourceFile

_HINT = "give a latent that --save-latents has written"
_DTYPES = {"F32": "<f4", "F16": "<f2"}
_BELOW, _ALPHA, _BOX = "frame.below", "frame.alpha", "frame.box"


@dataclass(frozen=True, slots=True, eq=False)
class SavedLatent:
    """A latent that was read.

    Args:
        path: of the file.
        values: (c, h/8, w/8) float32, scaled as the network sees it, finite.
        record: of the picture that it becomes; None where the file has none.
        frame: what the picture that it becomes is put into; None where it is all of it.
    """

    path: Path
    values: NDArray[np.float32]
    record: Record | None
    frame: Frame | None = None


def encode_latent(latent: NDArray[np.float32], record: Record | None, frame: Frame | None = None) -> bytes:
    """A latent as a safetensors file in memory, float32, with all that its picture still needs beside a first stage.

    Args:
        latent: (4, h/8, w/8), scaled as the network sees it.
        record: of the picture; None for none.
        frame: what the picture is put into, where only a part of it was drawn.
    """
    from safetensors.numpy import save

    metadata = {"format": "pt", "kind": "sdxl latent"}
    if record is not None:
        metadata[RECORD_KEY] = record.to_json()
    tensors: dict[str, NDArray[Any]] = {"latent": np.ascontiguousarray(latent, dtype=np.float32)}
    if frame is not None:
        tensors |= {_BELOW: np.ascontiguousarray(frame.below), _ALPHA: np.ascontiguousarray(frame.alpha)}
        tensors[_BOX] = np.array(frame.box, np.int64)
    return save(tensors, metadata)


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
    values = _array(header, "latent", _DTYPES[info.dtype]).astype(np.float32)
    if not np.isfinite(values).all():
        raise NumericsError(f"{path}: the latent is not finite", hint="sample the picture again")
    return SavedLatent(path, values, _record(path, header.metadata.get(RECORD_KEY)), _frame(header))


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


def _frame(header: Header) -> Frame | None:
    infos = [header.tensors.get(name) for name in (_BELOW, _ALPHA, _BOX)]
    below, alpha, box = infos
    if below is None or alpha is None or box is None:
        return None
    height, width, *_ = below.shape or (0, 0)
    if (below.dtype, alpha.dtype, box.dtype) == ("U8", "U8", "I64") and (below.shape, alpha.shape, box.shape) == (
        (height, width, 3),
        (height, width),
        (4,),
    ):
        top, left, bottom, right = map(int, _array(header, _BOX, "<i8"))
        if 0 <= top < bottom <= height and 0 <= left < right <= width:
            return Frame(_array(header, _BELOW, "u1"), _array(header, _ALPHA, "u1"), (top, left, bottom, right))
    raise CheckpointError(f"{header.path}: what it keeps of a picture around the latent is damaged", hint=_HINT)


def _array(header: Header, name: str, dtype: str) -> NDArray[Any]:
    """The values of one tensor."""
    info = header.tensors[name]
    with open_checkpoint(header.path) as file:
        file.seek(header.data_start + info.offsets[0])
        data = file.read(info.nbytes)
    if len(data) < info.nbytes:
        raise CheckpointError(f"{header.path}: shrank while it was read", hint="try again")
    return np.frombuffer(data, dtype).reshape(info.shape)


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
