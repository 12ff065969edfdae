"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from sdxl_core.errors import OutputError

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NO_FOLDER = "it is a file, not a folder"


class NameTakenError(OutputError):
    """Another file has this name already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already", hint="give another name, or --overwrite")


def check_directory(directory: Path) -> None:
    """Refuse a directory of which a look tells that it cannot be made or written to; nothing is touched.

    Raises:
        OutputError: a file is in the way, or writing is not allowed there.
    """
    place = next((path for path in (directory, *directory.parents) if os.path.exists(path)), None)
    if place is not None and not place.is_dir():
        _refuse(directory, _NO_FOLDER if place == directory else os.strerror(errno.ENOTDIR))
    if place is not None and not os.access(place, os.W_OK | os.X_OK):
        _refuse(directory, os.strerror(errno.EACCES))


def prepare_directory(directory: Path) -> None:
    """Make `directory`, prove that it can be written to, and clear temporary files of runs that died.

    Raises:
        OutputError: it cannot be made or written to.
    """
    probe = directory / _temporary_name()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(probe, "xb") as f:
            f.write(b"\0" * 4096)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        reason = _NO_FOLDER if isinstance(e, FileExistsError) else e.strerror or e
        _refuse(directory, str(reason))
    finally:
        _remove(probe)
    _sweep(directory)


def _refuse(directory: Path, reason: str) -> NoReturn:
    raise OutputError(f"cannot write to {directory}: {reason}", hint="choose another place") from None


@contextlib.contextmanager
def whole_file(path: Path, *, overwrite: bool = False, within: Path | None = None) -> Iterator[BinaryIO]:
    """A file that has its name once the block has ended well; else nothing is left of it, and an older one stays.

    Other programs see all of it or none of it, even across a crash.

    Args:
        path: its parent directories are made.
        overwrite: replace a file of that name.
        within: refuse to write outside this directory, symbolic links followed.

    Raises:
        NameTakenError: the name is taken and `overwrite` is off.
        OutputError: the disk is full, or the directory cannot be written to.
    """
    temporary = path.with_name(_temporary_name())
    try:
        _make_folder(path)
        if within is not None and not path.parent.resolve().is_relative_to(within.resolve()):
            raise OutputError(f"{path} lies outside {within}")
        with open(temporary, "xb") as file:
            yield file
        publish(temporary, path, overwrite=overwrite)
    except FileExistsError:
        raise NameTakenError(path) from None
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from None
    finally:
        _remove(temporary)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"cannot write {path}: {path.parent} is a file, not a folder") from None


def write_whole(path: Path, data: bytes, *, overwrite: bool = False, within: Path | None = None) -> None:
    """Write `data` as one file; all else as in `whole_file`.

    Raises:
        NameTakenError: the name is taken and `overwrite` is off.
        OutputError: the disk is full, or the directory cannot be written to.
    """
    with whole_file(path, overwrite=overwrite, within=within) as file:
        file.write(data)


def publish(finished: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name in the same directory, once its bytes are on the disk.

    Raises:
        FileExistsError: the name is taken and `overwrite` is off.
        OSError: the disk refused it.
    """
    _sync(finished)
    if overwrite:
        os.replace(finished, path)
    else:
        _take_free_name(finished, path)
    _sync(path.parent)


def _take_free_name(finished: Path, path: Path) -> None:
    try:
        os.link(finished, path, follow_symlinks=False)
    except OSError as e:
        if e.errno not in _NO_HARD_LINKS:
            raise
        # A file system without hard links: reserve the name, then put the finished file in its place.
        with open(path, "xb"):
            pass
        os.replace(finished, path)


def _sync(path: Path) -> None:
    """Bring the bytes of a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # directories of some network file systems
            raise
    finally:
        os.close(descriptor)


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _temporary_name() -> str:
    return f".sdxl-{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # its directory is gone or read-only: then there is nothing to clean
        path.unlink(missing_ok=True)


def _sweep(directory: Path) -> None:
    """Remove the temporary files that dead processes of this machine left behind."""
    pattern = re.compile(rf"\.sdxl-{_host()}-(\d{{1,10}})-[0-9a-f]{{8}}\.part")
    for name in os.listdir(directory):
        match = pattern.fullmatch(name)
        if match and not _alive(int(match[1])):
            _remove(directory / name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
