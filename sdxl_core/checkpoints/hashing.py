"""The sha256 of a model file, remembered so that 7 GB are not read again for every picture. Imports no torch."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sdxl_core.checkpoints.header import open_checkpoint
from sdxl_core.errors import CheckpointError, OutputError
from sdxl_core.output import write_whole
from sdxl_core.progress import SILENT, Reporter

_CHUNK_BYTES = 2**22


def file_hash(path: Path, *, cache: Path | None = None, reporter: Reporter = SILENT) -> str:
    """The sha256 of a file in lower-case hex; about 2 s for 1 GB, nothing when remembered.

    Args:
        path: the file.
        cache: folder to remember hashes in, by absolute path, size and time of change; None remembers nothing.
            A cache that cannot be read or written only costs the time.
        reporter: counts bytes.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with open_checkpoint(path) as file:
        known = _facts(path, os.fstat(file.fileno()))
        remembered = _recall(path, known, cache)
        if remembered is not None:
            return remembered
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
        reporter.start(f"hashing {path.name}", known["bytes"], "B")
        try:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                reporter.advance(count)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        finally:
            reporter.finish()
    _remember(path, known | {"sha256": digest.hexdigest()}, cache)
    return digest.hexdigest()


def remember_hash(path: Path, sha256: str, cache: Path | None) -> None:
    """Note the hash of a file that was verified under another name."""
    _remember(path, _facts(path, path.stat()) | {"sha256": sha256}, cache)


def _facts(path: Path, status: os.stat_result) -> dict[str, Any]:
    """What must be the same for a remembered hash to hold."""
    return {"path": os.path.realpath(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _entry(path: Path, cache: Path) -> Path:
    return cache / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]}.json"


def _recall(path: Path, known: dict[str, Any], cache: Path | None) -> str | None:
    try:
        found = None if cache is None else json.loads(_entry(path, cache).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or {key: found.get(key) for key in known} != known:
        return None
    remembered = found.get("sha256")
    return remembered if isinstance(remembered, str) and len(remembered) == 64 else None


def _remember(path: Path, facts: dict[str, Any], cache: Path | None) -> None:
    if cache is None:
        return
    with contextlib.suppress(OutputError):
        write_whole(_entry(path, cache), json.dumps(facts).encode("utf-8"), overwrite=True)
