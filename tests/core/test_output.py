import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support_files import room_for

from sdxl_core.errors import OutputError
from sdxl_core.output import NameTakenError, check_directory, prepare_directory, whole_file, write_whole


def test_a_file_is_written_with_the_usual_mode_and_nothing_else(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "deep" / "a.png", b"abc")
    finally:
        os.umask(mask)
    assert (tmp_path / "deep" / "a.png").read_bytes() == b"abc"
    assert (tmp_path / "deep" / "a.png").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "deep") == ["a.png"]


def test_an_existing_file_stays_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(NameTakenError):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_link_is_neither_followed_nor_left_half_way(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "a.png").symlink_to(tmp_path / "target")
    with pytest.raises(NameTakenError):
        write_whole(tmp_path / "a.png", b"new")
    write_whole(tmp_path / "a.png", b"new", overwrite=True)
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not (tmp_path / "a.png").is_symlink()


def test_a_linked_directory_does_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="outside"):
        write_whole(tmp_path / "out" / "sub" / "a.png", b"x", within=tmp_path / "out")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_whole(tmp_path / "a.png", b"abc")
    with pytest.raises(NameTakenError):
        write_whole(tmp_path / "a.png", b"new")
    assert (tmp_path / "a.png").read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_break_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def broken_off() -> None:
        with whole_file(path, overwrite=True) as file:
            file.write(b"new")
            file.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with room_for(1000), pytest.raises(OutputError, match=r"cannot write .*a\.png: File too large"):
        write_whole(tmp_path / "a.png", b"x" * 5000)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="it is a file, not a folder"):
        prepare_directory(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write to"):
        prepare_directory(tmp_path / "file" / "below")


def test_what_a_look_at_a_directory_tells_is_what_writing_to_it_would(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in "file", "file/below", "file/far/below":
        with pytest.raises(OutputError) as looked:
            check_directory(tmp_path / name)
        with pytest.raises(OutputError) as tried:
            prepare_directory(tmp_path / name)
        assert (looked.value.message, looked.value.hint) == (tried.value.message, tried.value.hint)
    for name in "folder", "new", "new/below":
        check_directory(tmp_path / name)
    check_directory(Path("outputs/of/another/day"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_directory_that_may_not_be_written_is_seen_by_a_look(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("the superuser may write anywhere")
    with pytest.raises(OutputError, match="Permission denied"):
        check_directory(tmp_path / "below")


def test_a_file_in_the_place_of_a_folder_is_no_taken_name(tmp_path: Path) -> None:
    """Else the next free name is tried, and the next, and none is better."""
    (tmp_path / "out").touch()
    for path in tmp_path / "out" / "cat.png", tmp_path / "out" / "below" / "cat.png":
        with pytest.raises(OutputError, match=r"cannot write .*cat\.png: ") as refusal:
            write_whole(path, b"a cat")
        assert not isinstance(refusal.value, NameTakenError)
    assert os.listdir(tmp_path) == ["out"]


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_whole(tmp_path / "probe", b"")
    prefix = subprocess.run(
        [sys.executable, "-c", "from sdxl_core.output import _temporary_name as n; print(n())"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout.split("-")
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"{prefix[0]}-{prefix[1]}-{pid}-01234567.part").touch()
    prepare_directory(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["probe", f"{prefix[0]}-{prefix[1]}-{os.getpid()}-01234567.part"])


WRITER = """
import signal, sys
from pathlib import Path
from sdxl_core.output import write_whole
# A job in the background of a script is born deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("go", flush=True)
for i in range(10**4):
    write_whole(Path(sys.argv[1]) / f"{i}.bin", bytes([i % 256]) * 300_000)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path, kind: signal.Signals) -> None:
    for delay in (0.013, 0.029, 0.047):
        directory = tmp_path / str(delay)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(kind)
        assert writer.wait(timeout=60) != 0
        writer.stdout.close()
        prepare_directory(directory)
        for path in directory.iterdir():
            assert path.read_bytes() == bytes([int(path.stem) % 256]) * 300_000
