"""Weights from a safetensors file into modules built on the meta device, without a second copy in memory."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from sdxl_core.checkpoints.check import check_keys
from sdxl_core.checkpoints.header import Header, TensorInfo, open_checkpoint, read_header
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


def load_parts(
    header: Header, parts: Sequence[Part], *, device: torch.device | str = "cpu", reporter: Reporter = SILENT
) -> None:
    """Fill modules from one file; memory peaks at the weights themselves and 16 MB (32 MB pinned for CUDA).

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
            reader = _Reader(file, header, device, reporter)
            for want in wants:
                loaded[want.part.prefix][want.name] = reader.tensor(want)
            reader.finish()
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


class _Reader:
    """Reads tensors of one open file; holds the staging memory for what cannot be read in place."""

    def __init__(self, file: FileIO, header: Header, device: torch.device, reporter: Reporter) -> None:
        self.file, self.header, self.device, self.reporter = file, header, device, reporter
        self.cuda = device.type == "cuda"
        self.stages: list[Tensor] = []
        self.copied: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0

    def tensor(self, want: _Want) -> Tensor:
        """The tensor on the device, in the wanted dtype and layout."""
        stored = TORCH_DTYPES[want.info.dtype]
        last = want.part.channels_last and len(want.info.shape) == 4
        out = torch.empty(
            want.info.shape,
            dtype=want.dtype,
            device=self.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        start = self.header.data_start + want.info.offsets[0]
        if self.device.type == "cpu" and stored == want.dtype and not last:
            flat = out.reshape(-1).view(torch.uint8)
            for begin in range(0, flat.numel(), CHUNK_BYTES):
                self._read(start + begin, flat[begin : begin + CHUNK_BYTES])
        else:
            self._convert(out, stored, start)
        return out

    def finish(self) -> None:
        """Wait until everything has reached the device."""
        for event in self.copied:
            if event is not None:
                event.synchronize()

    def _convert(self, out: Tensor, stored: torch.dtype, start: int) -> None:
        """Through the staging memory, a few rows at a time."""
        for rows in _rows(out, stored.itemsize):
            size = rows.numel() * stored.itemsize
            stage = self._stage(size)
            self._read(start, stage)
            start += size
            values = stage.view(stored).view(rows.shape)
            if self.cuda:
                # Sent as stored, so that the conversion runs on the device and the copy can overlap the next read.
                rows.copy_(values.to(self.device, non_blocking=True))
                event = self.copied[self.turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                self.turn = 1 - self.turn
            else:
                rows.copy_(values)

    def _stage(self, size: int) -> Tensor:
        """Staging memory of `size` bytes that no copy is reading any more; CUDA takes turns with two pinned ones."""
        if not self.stages:
            self.stages = [
                torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=self.cuda) for _ in range(1 + self.cuda)
            ]
        event = self.copied[self.turn]
        if event is not None:
            event.synchronize()
        if self.stages[self.turn].numel() < size:
            self.stages[self.turn] = torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda)
        return self.stages[self.turn][:size]

    def _read(self, position: int, into: Tensor) -> None:
        """Fill a byte tensor from the file."""
        view = memoryview(into.numpy())  # type: ignore[arg-type]
        try:
            self.file.seek(position)
            while view.nbytes:
                count = self.file.readinto(view)
                if not count:
                    raise CheckpointError(f"{self.header.path}: shrank while it was read", hint="fetch the file again")
                view = view[count:]
                self.reporter.advance(count)
        except OSError as error:
            raise CheckpointError(f"{self.header.path}: {error.strerror}") from error


def _rows(out: Tensor, itemsize: int) -> Iterator[Tensor]:
    """Views of the tensor along its first axis, each of at most CHUNK_BYTES as stored (or one row)."""
    if out.ndim == 0 or out.numel() * itemsize <= CHUNK_BYTES:
        yield out
        return
    count = max(1, CHUNK_BYTES // (out[0].numel() * itemsize))
    yield from torch.split(out, count)
