import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support_files import room_for
from support_reporter import Recorder

from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.save import save_weights
from sdxl_core.errors import OutputError

TENSORS = {
    "b.half": torch.arange(3).half(),
    "a.float": torch.arange(6.0).reshape(2, 3).t(),
    "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
    "ids": torch.arange(5),
    "none": torch.zeros(0, 2),
    "猫": torch.ones(1),
}


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    recorder = Recorder()
    save_weights(path, TENSORS, metadata={"title": 'a "b" 猫'}, reporter=recorder)
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"title": 'a "b" 猫'}
    header = read_header(path)
    assert header.data_start % 8 == 0
    assert all(info.offsets[0] % (info.nbytes // max(info.numel, 1) or 1) == 0 for info in header.tensors.values())
    total = sum(tensor.nbytes for tensor in TENSORS.values())
    assert recorder.tasks == [["writing x.safetensors", total, "B", total, True]]


def test_weights_take_the_dtype_asked_for_and_whole_numbers_keep_theirs(tmp_path: Path) -> None:
    save_weights(tmp_path / "x.safetensors", TENSORS, dtype=torch.float16)
    loaded = load_file(tmp_path / "x.safetensors")
    assert {key: tensor.dtype for key, tensor in loaded.items() if tensor.dtype != torch.float16} == {
        "ids": torch.int64
    }
    assert torch.equal(loaded["a.float"], TENSORS["a.float"].half())


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    save_weights(tmp_path / "a", TENSORS, metadata={"x": "1", "y": "2"})
    save_weights(tmp_path / "b", dict(reversed(TENSORS.items())), metadata={"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_takes_the_place_of_the_old_one_and_the_mode_of_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_weights(path, {"a": torch.zeros(2)})
    save_weights(path, {"b": torch.ones(2)})
    assert list(load_file(path)) == ["b"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    with room_for(4096), pytest.raises(OutputError, match=r"x\.safetensors: File too large"):
        save_weights(tmp_path / "x.safetensors", {"a": torch.zeros(4096)})
    assert os.listdir(tmp_path) == []
