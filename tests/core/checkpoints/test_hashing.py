import hashlib
import os
from pathlib import Path

import pytest
from support_reporter import Recorder

from sdxl_core.checkpoints.hashing import file_hash
from sdxl_core.errors import CheckpointError

CONTENT = b"weights" * 1_000_000


def test_is_the_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    recorder = Recorder()
    assert file_hash(tmp_path / "x", reporter=recorder) == hashlib.sha256(CONTENT).hexdigest()
    assert recorder.tasks == [["hashing x", len(CONTENT), "B", len(CONTENT), True]]


def test_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, cache, recorder = tmp_path / "x", tmp_path / "cache" / "hashes", Recorder()
    path.write_bytes(b"one")
    for _ in range(3):
        assert file_hash(path, cache=cache, reporter=recorder) == hashlib.sha256(b"one").hexdigest()
    assert len(recorder.tasks) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_hash(path, cache=cache, reporter=recorder) == hashlib.sha256(b"two").hexdigest()
    assert len(recorder.tasks) == 2
    other = tmp_path / "y"
    other.write_bytes(b"six")
    os.utime(other, ns=(1, 1))
    assert file_hash(other, cache=cache) == hashlib.sha256(b"six").hexdigest()


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"\xff", b'{"sha256": 3}', b"[" * 100_000])
def test_a_broken_cache_only_costs_the_time(tmp_path: Path, rubbish: bytes) -> None:
    path, cache = tmp_path / "x", tmp_path / "cache"
    path.write_bytes(b"one")
    file_hash(path, cache=cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(rubbish)
    assert file_hash(path, cache=cache) == hashlib.sha256(b"one").hexdigest()


def test_a_cache_that_cannot_be_written_only_costs_the_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert file_hash(path, cache=path / "below-a-file") == hashlib.sha256(b"one").hexdigest()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        file_hash(tmp_path / "x")
