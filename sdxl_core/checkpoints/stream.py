"""Weights from a file to another device: several threads read ahead while what they have read is on its way."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sdxl_core.checkpoints.header import open_checkpoint
from sdxl_core.errors import CheckpointError
from sdxl_core.progress import Reporter

READERS = 4
"""Threads: one copies some 12 GB/s out of the page cache, and a card takes 25 to 50."""

STAGES = 6
"""Pieces of memory that are read into: two are on their way to the device while every reader has one."""

_ALIGNED = 64  # bytes: every dtype can be seen in place


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to fill.

    Args:
        out: where it goes, of any dtype and layout.
        stored: its dtype in the file, where its numbers lie row by row.
        position: of its first byte in the file.
    """

    out: Tensor
    stored: torch.dtype
    position: int

    @property
    def nbytes(self) -> int:
        """What is read."""
        return self.out.numel() * self.stored.itemsize

    def pieces(self, most: int) -> Iterator["Target"]:
        """The same in parts of at most so many bytes, or of one row."""
        if self.nbytes <= most or self.out.ndim == 0:
            if self.nbytes:
                yield self
            return
        row = self.out[0].numel() * self.stored.itemsize
        count = max(1, most // row)
        for i, rows in enumerate(torch.split(self.out, count)):
            yield Target(rows, self.stored, self.position + i * count * row)


def read_at(file: FileIO, path: Path, position: int, into: Tensor) -> Iterator[int]:
    """Fill a byte tensor from a file, giving how many bytes each read has brought.

    Raises:
        CheckpointError: it cannot be read, or has no more so many bytes.
    """
    view = memoryview(into.numpy())  # type: ignore[arg-type]
    try:
        file.seek(position)
        while view.nbytes:
            count = file.readinto(view)
            if not count:
                raise CheckpointError(f"{path}: shrank while it was read", hint="fetch the file again")
            view = view[count:]
            yield count
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def stream(path: Path, targets: Sequence[Target], chunk_bytes: int, reporter: Reporter) -> None:
    """Fill tensors of one device; what was stored in another dtype or layout is changed there.

    Takes STAGES times `chunk_bytes` on the host, pinned for CUDA, and once as much on the device.

    Args:
        path: the file, which the targets were taken from.
        targets: in the order of the file, so that a disk is read from one end to the other.
        chunk_bytes: what is read at once.
        reporter: counts bytes that have arrived.

    Raises:
        CheckpointError: the file cannot be read, or is not the one any more that it was at the beginning.
    """
    chunks = list(_chunks(targets, chunk_bytes))
    if not chunks:
        return
    device = targets[0].out.device
    with open_checkpoint(path) as file:
        ring = _Ring(path, _identity(file.fileno()), max(map(_room, chunks)), device)
        with ThreadPoolExecutor(READERS, thread_name_prefix="reader") as pool:
            waiting: deque[tuple[Sequence[Target], _Stage, Future[None]]] = deque()
            try:
                for chunk in chunks:
                    if len(waiting) == STAGES - 1:  # the last stage that was sent may still be on its way
                        reporter.advance(ring.send(*waiting.popleft()))
                    stage = ring.next()
                    waiting.append((chunk, stage, pool.submit(ring.read, chunk, stage)))
                while waiting:
                    reporter.advance(ring.send(*waiting.popleft()))
            finally:
                pool.shutdown(cancel_futures=True)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@dataclass(slots=True)
class _Stage:
    """Memory to read into.

    Args:
        memory: bytes.
        sent: until when the device reads it.
    """

    memory: Tensor
    sent: torch.cuda.Event | None = None


class _Ring:
    """The stages, which take turns."""

    def __init__(self, path: Path, identity: tuple[int, ...], stage_bytes: int, device: torch.device) -> None:
        self.path, self.identity, self.device = path, identity, device
        self.stage_bytes = stage_bytes
        self.stages: deque[_Stage] = deque()

    def next(self) -> _Stage:
        """The stage that was used longest ago, which the device may still read; a new one in the first round."""
        if len(self.stages) < STAGES:
            pinned = self.device.type == "cuda"
            stage = _Stage(torch.empty(self.stage_bytes, dtype=torch.uint8, pin_memory=pinned))
        else:
            stage = self.stages.popleft()
        self.stages.append(stage)
        return stage

    def read(self, chunk: Sequence[Target], stage: _Stage) -> None:
        """Read a chunk, each of its pieces to an aligned place; on a thread of its own."""
        if stage.sent is not None:
            stage.sent.synchronize()
        with open_checkpoint(self.path) as file:
            if _identity(file.fileno()) != self.identity:
                raise CheckpointError(f"{self.path}: changed while it was read", hint="try again")
            for piece, start in _placed(chunk):
                deque(read_at(file, self.path, piece.position, stage.memory[start : start + piece.nbytes]), maxlen=0)

    def send(self, chunk: Sequence[Target], stage: _Stage, read: Future[None]) -> int:
        """Wait for a chunk and begin to send it; how many bytes of the file it has."""
        read.result()
        there = stage.memory[: _room(chunk)].to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            stage.sent = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            stage.sent.record(torch.cuda.current_stream(self.device))
        for piece, start in _placed(chunk):
            piece.out.copy_(there[start : start + piece.nbytes].view(piece.stored).view(piece.out.shape))
        return sum(piece.nbytes for piece in chunk)


def _chunks(targets: Sequence[Target], most: int) -> Iterator[list[Target]]:
    """The targets in pieces, in groups that are read at once."""
    chunk: list[Target] = []
    room = 0
    for target in targets:
        for piece in target.pieces(most):
            if chunk and room + piece.nbytes > most:
                yield chunk
                chunk, room = [], 0
            chunk.append(piece)
            room += _aligned(piece.nbytes)
    if chunk:
        yield chunk


def _placed(chunk: Sequence[Target]) -> Iterator[tuple[Target, int]]:
    """Each piece and where in the stage it begins."""
    start = 0
    for piece in chunk:
        yield piece, start
        start += _aligned(piece.nbytes)


def _room(chunk: Sequence[Target]) -> int:
    return sum(_aligned(piece.nbytes) for piece in chunk)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def _identity(file: int) -> tuple[int, ...]:
    """What tells a file that is the same from another one of its name, or one that was written to."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
