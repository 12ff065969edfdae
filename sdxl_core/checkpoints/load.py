"""Weights from a safetensors file into modules built on the meta device, without a second copy in memory."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from sdxl_core.checkpoints.check import check_keys
from sdxl_core.checkpoints.header import Header, TensorInfo, open_checkpoint, read_header
from sdxl_core.checkpoints.stream import Target, read_at, stream
from sdxl_core.errors import CheckpointError
from sdxl_core.progress import SILENT, Reporter

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""The dtypes of the format that weights can be read from."""

CHUNK_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Part:
    """One module of the model and the keys it takes.

    Args:
        module: built on the meta device; its state-dict keys are the file's keys without the prefix.
        prefix: `model.diffusion_model.` and the like.
        dtype: of the floating-point weights in memory; None keeps the file's.
        channels_last: whether convolution weights (4-D) are laid out with channels last.
    """

    module: nn.Module
    prefix: str
    dtype: torch.dtype | None = None
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class _Want:
    part: Part
    name: str
    info: TensorInfo
    dtype: torch.dtype

    @property
    def stored(self) -> torch.dtype:
        return TORCH_DTYPES[self.info.dtype]

    @property
    def last(self) -> bool:
        """Whether it is laid out with channels last."""
        return self.part.channels_last and len(self.info.shape) == 4

    @property
    def nbytes(self) -> int:
        """In memory, where PyTorch's allocator takes multiples of 512 bytes."""
        return -(-self.info.numel * self.dtype.itemsize // 512) * 512

    def empty(self, device: torch.device) -> Tensor:
        layout = torch.channels_last if self.last else torch.contiguous_format
        return torch.empty(self.info.shape, dtype=self.dtype, device=device, memory_format=layout)


def load_parts(
    header: Header, parts: Sequence[Part], *, device: torch.device | str = "cpu", reporter: Reporter = SILENT
) -> None:
    """Fill modules from one file; memory peaks at the weights themselves and 16 MB (and 101 MB of the host for CUDA).

    Reads in the order of the file with plain reads, so a file that shrinks meanwhile is an error, not a crash. The
    modules change only after the last byte is read: an interrupt leaves them as they were.

    Args:
        header: of the file to read.
        parts: which modules take which keys.
        device: where the weights go.
        reporter: counts bytes read.

    Raises:
        CheckpointError: keys under the prefixes are missing, unexpected or mis-shaped, or the file cannot be read.
    """
    device = torch.device(device)
    wants = _wants(header, parts)
    loaded: dict[str, dict[str, Tensor]] = {part.prefix: {} for part in parts}
    reporter.start(f"loading {header.path.name}", sum(want.info.nbytes for want in wants), "B")
    try:
        with open_checkpoint(header.path) as file, torch.no_grad():
            if os.fstat(file.fileno()).st_size != header.file_bytes:
                raise CheckpointError(f"{header.path}: changed while it was read", hint="try again")
            if device.type == "cpu":
                reader = _Reader(file, header, reporter)
                for want in wants:
                    loaded[want.part.prefix][want.name] = reader.tensor(want)
            else:
                for part in parts:
                    of_part = [want for want in wants if want.part is part]
                    _reserve(sum(want.nbytes for want in of_part), device)
                    loaded[part.prefix] = {want.name: want.empty(device) for want in of_part}
                targets = [
                    Target(loaded[want.part.prefix][want.name], want.stored, header.data_start + want.info.offsets[0])
                    for want in wants
                ]
                stream(header.path, targets, CHUNK_BYTES, reporter)
    finally:
        reporter.finish()
    for part in parts:
        tensors = loaded.pop(part.prefix)
        for name, slot in part.module.state_dict().items():
            if name not in tensors:  # a spare key: `check_keys` lets no other be missing
                tensors[name] = torch.zeros(slot.shape, dtype=part.dtype or slot.dtype, device=device)
        part.module.load_state_dict(tensors, strict=True, assign=True)
        _check_filled(part.module)


def load_into(
    module: nn.Module,
    path: str | Path,
    prefix: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    reporter: Reporter = SILENT,
) -> None:
    """Fill one module from one file; see `load_parts`."""
    load_parts(read_header(path), [Part(module, prefix, dtype, channels_last)], device=device, reporter=reporter)


def _wants(header: Header, parts: Sequence[Part]) -> list[_Want]:
    """What to read, in the order of the file."""
    slots = {
        part.prefix + name: (part, name, slot) for part in parts for name, slot in part.module.state_dict().items()
    }
    check_keys(header, {key: slot.shape for key, (_, _, slot) in slots.items()}, [part.prefix for part in parts])
    wants = []
    for key, info in header.tensors.items():
        if key not in slots:
            continue
        part, name, slot = slots[key]
        stored = TORCH_DTYPES.get(info.dtype)
        if stored is None or stored.is_floating_point != slot.dtype.is_floating_point:
            raise CheckpointError(f"{header.path}: {key} is stored as {info.dtype}, which cannot hold these weights")
        floating = part.dtype or stored
        wants.append(_Want(part, name, info, floating if slot.dtype.is_floating_point else slot.dtype))
    return wants


def _check_filled(module: nn.Module) -> None:
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if empty:
        raise ValueError(f"buffers {empty} are on the meta device and in no file: make them on a real one")


def _reserve(nbytes: int, device: torch.device) -> None:
    """Have so much memory ready on a device: asking its driver for every tensor takes as long as reading them."""
    if device.type == "cuda":
        with suppress(torch.OutOfMemoryError):  # in one piece; it may be there in many
            torch.empty(nbytes, dtype=torch.uint8, device=device)


class _Reader:
    """Reads tensors of one open file into the memory of the host; a buffer is for what cannot be read in place."""

    def __init__(self, file: FileIO, header: Header, reporter: Reporter) -> None:
        self.file, self.header, self.reporter = file, header, reporter
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def tensor(self, want: _Want) -> Tensor:
        """The tensor in the wanted dtype and layout."""
        out, start = want.empty(torch.device("cpu")), self.header.data_start + want.info.offsets[0]
        if want.stored == want.dtype and not want.last:
            flat = out.reshape(-1).view(torch.uint8)
            for begin in range(0, flat.numel(), CHUNK_BYTES):
                self._read(start + begin, flat[begin : begin + CHUNK_BYTES])
        else:
            for piece in Target(out, want.stored, start).pieces(CHUNK_BYTES):
                if self.buffer.numel() < piece.nbytes:
                    self.buffer = torch.empty(max(CHUNK_BYTES, piece.nbytes), dtype=torch.uint8)
                read = self.buffer[: piece.nbytes]
                self._read(piece.position, read)
                piece.out.copy_(read.view(piece.stored).view(piece.out.shape))
        return out

    def _read(self, position: int, into: Tensor) -> None:
        """Fill a byte tensor from the file."""
        for count in read_at(self.file, self.header.path, position, into):
            self.reporter.advance(count)
