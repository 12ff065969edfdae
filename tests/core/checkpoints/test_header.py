import json
import os
import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_files import header_table, published_shapes, raw_file, sparse_file

from sdxl_core.checkpoints.header import MAX_HEADER_BYTES, MAX_TENSORS, read_header
from sdxl_core.errors import CheckpointError

ONE = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert caught.value.message.isprintable()
    return caught.value


def test_reads_what_the_reference_wrote(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        "b": torch.tensor(1.0),
        "empty": torch.zeros(0, 5),
        "ids": torch.arange(7),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"modelspec.title": "猫"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"modelspec.title": "猫"}
    assert {k: (t.dtype, t.shape, t.nbytes, t.numel) for k, t in header.tensors.items()} == {
        "a.weight": ("BF16", (3, 4), 24, 12),
        "b": ("F32", (), 4, 1),
        "empty": ("F32", (0, 5), 0, 0),
        "ids": ("I64", (7,), 56, 7),
    }
    assert header.file_bytes == (tmp_path / "x.safetensors").stat().st_size == header.data_start + 24 + 4 + 56


@pytest.mark.parametrize(("kind", "count", "size"), [("base", 2515, 6_938_078_334), ("refiner", 1858, 6_075_981_930)])
def test_a_published_header_takes_no_time(tmp_path: Path, kind: str, count: int, size: int) -> None:
    path = sparse_file(tmp_path / "x.safetensors", published_shapes(kind))
    start = time.process_time()
    header = read_header(path)
    assert time.process_time() - start < 0.2
    assert len(header.tensors) == count
    assert abs(header.file_bytes - size) < 100_000  # the header's own length differs


FILES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "empty", "did not finish"),
    "seven bytes": (b"\x08\0\0\0\0\0\0", "not a safetensors file", "safetensors"),
    "text": (b"hello, this is a readme", "not a safetensors file", "safetensors"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS pointer", "git lfs pull"),
    "html": (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>", "web page", "fetch the file again"),
    "html without doctype": (b"<HTML><head>", "web page", "fetch the file again"),
    "pickle": (b"\x80\x02}q\x00.", "pickle", "convert it"),
    "protocol 4": (b"\x80\x04\x95" + b"x" * 20, "pickle", "convert it"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 30, "GGUF", "safetensors"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "picture", "safetensors"),
    "endless header": ((2**63).to_bytes(8, "little") + b"{}", "header is 9223372036854775808 bytes", "damaged"),
    "too large header": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "bytes long (at most", "damaged"),
    "header cut off": ((1000).to_bytes(8, "little") + b'{"a":', "at least 995 of 1008 bytes are missing", "again"),
    "data cut off": (raw_file(ONE, b"1234567"), "cut off: 1 of 77 bytes are missing", "fetch it again"),
    "data too long": (raw_file(ONE, b"123456789"), "1 bytes longer", "fetch it again"),
    "no json": (raw_file(b"{" + b"x" * 9), "is not JSON", ""),
    "no utf-8": (raw_file(b'{"\xff":1}'), "is not JSON", ""),
    "nan": (raw_file(b'{"a":NaN}'), "is not JSON", ""),
    "lone surrogate": (raw_file(b'{"\\ud800":{}}'), "is not JSON", ""),
    "huge number": (raw_file(b'{"a":' + b"9" * 5000 + b"}"), "is not JSON", ""),
    "deep": (raw_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply", ""),
    "duplicate": (raw_file(b'{"a":1,"b":2,"b":2}'), "names b twice", ""),
    "duplicate inside": (raw_file(b'{"w":{"dtype":"F32","dtype":"F32"}}'), "names dtype twice", ""),
    "metadata number": (raw_file({"__metadata__": {"a": 1}}), "metadata that is not text", ""),
    "metadata list": (raw_file({"__metadata__": []}), "metadata that is not text", ""),
    "no entry": (raw_file({"w": 3}), "does not say dtype, shape and offsets of tensor w", ""),
    "no shape": (raw_file({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, b"8" * 8), "does not say", ""),
    "dtype": (raw_file({"w": {**ONE["w"], "dtype": "F31"}}, b"8" * 8), "unknown dtype 'F31'", ""),
    "dtype list": (raw_file({"w": {**ONE["w"], "dtype": []}}, b"8" * 8), "unknown dtype", ""),
    "negative": (raw_file({"w": {**ONE["w"], "shape": [-2]}}, b"8" * 8), "impossible shape", ""),
    "truth": (raw_file({"w": {**ONE["w"], "shape": [True]}}, b"8" * 8), "impossible shape", ""),
    "fraction": (raw_file({"w": {**ONE["w"], "shape": [2.0]}}, b"8" * 8), "impossible shape", ""),
    "overflow": (raw_file({"w": {**ONE["w"], "shape": [2**62, 2**62, 4]}}, b"8" * 8), "does not fill its bytes", ""),
    "backwards": (raw_file({"w": {**ONE["w"], "data_offsets": [8, 0]}}, b"8" * 8), "does not fill its bytes", ""),
    "three offsets": (raw_file({"w": {**ONE["w"], "data_offsets": [0, 8, 8]}}, b"8" * 8), "impossible", ""),
    "shape and bytes": (raw_file({"w": {**ONE["w"], "shape": [3]}}, b"8" * 8), "does not fill its bytes", ""),
    "overlap": (raw_file({**ONE, "v": ONE["w"]}, b"8" * 8), "overlap at tensor v", ""),
    "hole": (raw_file({"w": {**ONE["w"], "data_offsets": [1, 9]}}, b"8" * 9), "hole before tensor w", ""),
    "escape codes": (raw_file({"\x1b[31m": 3}), r"'\x1b[31m'", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_sound_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    content, message, hint = FILES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    error = refusal(path)
    assert message in error.message
    assert str(path) in error.message
    assert hint in (error.hint or "")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    text = json.dumps(ONE).encode().ljust(0x280)
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file(text, b"8" * 8))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(path).tensors) == ["w"]


def test_a_torch_archive_is_named_and_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.zeros(2)}, path)
    assert zipfile.is_zipfile(path)
    error = refusal(path)
    assert "pickle" in error.message
    assert "never opened" in (error.hint or "")


def test_missing_folder_and_odd_paths(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors").message
    assert "is a folder" in refusal(tmp_path).message
    assert "null" in refusal(Path("a\0b")).message
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refusal(tmp_path / "loop")


def test_pipes_and_devices_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        start = time.monotonic()
        assert "not a regular file" in refusal(path).message
        assert time.monotonic() - start < 1


def test_a_file_that_the_system_fails_to_read() -> None:
    assert refusal(Path("/proc/self/mem")).message == "/proc/self/mem: cannot be read: Input/output error"


def test_too_many_tensors_are_refused_before_they_cost_memory(tmp_path: Path) -> None:
    entries = (b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(MAX_TENSORS + 1))
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file(b"{" + b",".join(entries) + b"}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    assert "more than 100000 tensors" in refusal(path).message
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def drop(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 20)]


def double(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 60)]


def splice(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    words = [
        b"null",
        b"[]",
        b"{}",
        b'"',
        b"-1",
        b"1e999",
        b"\\ud800",
        b"9" * 30,
        b"\0",
        b"[" * 3000,
        b"NaN",
        b",",
        b"F16",
    ]
    data[start : start + rng.randrange(4)] = rng.choice(words)


def fix_length(rng: random.Random, data: bytearray) -> None:
    """Make the length fit the JSON again, so that damage inside reaches the parser."""
    end = data.rfind(b"}") + 1
    if end > 8:
        data[:8] = (end - 8).to_bytes(8, "little")


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (flip, cut, drop, double, splice, fix_length)


def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    table = {"__metadata__": {"format": "pt"}, **header_table({"a.weight": (4, 2), "b.bias": (3,), "c": ()})}
    sound = raw_file(table, b"\0" * 24)
    rng = random.Random(2)
    path = tmp_path / "x.safetensors"
    outcomes, unprintable = {"read": 0, "refused": 0}, 0
    start = time.process_time()
    for _ in range(8000):
        data = bytearray(sound)
        for _ in range(rng.randrange(1, 4)):
            if data:
                rng.choice(MUTATIONS)(rng, data)
        if rng.random() < 0.5:
            fix_length(rng, data)
        path.unlink(missing_ok=True)  # writing over a file would wait for the disk
        path.write_bytes(data)
        try:
            read_header(path)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused"] += 1
            unprintable += not error.message.isprintable()
    assert unprintable == 0
    assert time.process_time() - start < 10
    assert min(outcomes.values()) > 20, outcomes
