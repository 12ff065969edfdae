"""Threads that read ahead bring the bytes that are in the file, in every dtype and layout, or an error."""

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_reporter import Recorder
from torch import Tensor

from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.load import TORCH_DTYPES
from sdxl_core.checkpoints.stream import Target, stream
from sdxl_core.errors import CheckpointError

CHUNK = 1000


def saved(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Target]]:
    """A file of many sizes, from nothing to several chunks and to a row that is longer than one."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(), (0, 7), (1,), (3, 5), (40, 25), (2, 700), (300, 1), (33, 4, 3, 3), *((n,) for n in range(1, 60, 3))]
    tensors = {f"t{i:02}": torch.randn(shape, generator=draw) for i, shape in enumerate(shapes)}
    tensors |= {f"{name}h": tensors[name].half() for name in ("t03", "t04", "t07")}
    tensors |= {"whole": torch.arange(500), "truths": torch.arange(77) % 3 == 0}
    save_file(tensors, path)
    header = read_header(path)
    targets = {}
    for name, info in header.tensors.items():
        stored = TORCH_DTYPES[info.dtype]
        last = torch.channels_last if len(info.shape) == 4 else torch.contiguous_format
        kept = torch.bfloat16 if stored == torch.float16 else stored
        out = torch.empty(info.shape, dtype=kept, memory_format=last)
        targets[name] = Target(out, stored, header.data_start + info.offsets[0])
    return path, tensors, targets


@pytest.mark.parametrize("chunk", [64, CHUNK, 10**6])
def test_every_tensor_arrives_and_every_byte_is_counted(tmp_path: Path, chunk: int) -> None:
    path, tensors, targets = saved(tmp_path / "x.safetensors")
    recorder = Recorder()
    recorder.start("loading", None)
    stream(path, list(targets.values()), chunk, recorder)
    for name, target in targets.items():
        assert torch.equal(target.out, tensors[name].to(target.out.dtype))
    assert recorder.tasks[0][3] == sum(tensor.nbytes for tensor in tensors.values())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_nothing_to_read_is_nothing_to_do(tmp_path: Path) -> None:
    stream(tmp_path / "missing.safetensors", [], CHUNK, Recorder())


class Acting(Recorder):
    """Does something when the first bytes have arrived."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self.start("loading", None)

    def advance(self, amount: float) -> None:
        super().advance(amount)
        if self.path is None:
            raise KeyboardInterrupt
        os.truncate(self.path, 2000)


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    path, _, targets = saved(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: (changed|shrank) while it was read"):
        stream(path, list(targets.values()), 64, Acting(path))


def test_an_interrupt_ends_the_readers(tmp_path: Path) -> None:
    path, _, targets = saved(tmp_path / "x.safetensors")
    with pytest.raises(KeyboardInterrupt):
        stream(path, list(targets.values()), 64, Acting(None))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_a_target_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path / "x.safetensors")
    beyond = Target(torch.empty(4), torch.float32, path.stat().st_size - 8)
    with pytest.raises(CheckpointError, match="shrank while it was read"):
        stream(path, [beyond], CHUNK, Recorder())
