"""The sha256 of a model file, remembered so that 7 GB are not read again for every picture. Imports no torch."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sdxl_core.checkpoints.header import open_checkpoint
from sdxl_core.errors import CheckpointError
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
        status = os.fstat(file.fileno())
        real = os.path.realpath(path)
        known: dict[str, Any] = {"path": real, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        entry = None if cache is None else cache / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
        remembered = _recall(entry, known)
        if remembered is not None:
            return remembered
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
        reporter.start(f"hashing {path.name}", status.st_size, "B")
        try:
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                digest.update(buffer[:count])
                reporter.advance(count)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        finally:
            reporter.finish()
    _remember(entry, known | {"sha256": digest.hexdigest()})
    return digest.hexdigest()


def _recall(entry: Path | None, known: dict[str, Any]) -> str | None:
    try:
        found = json.loads(entry.read_text(encoding="utf-8")) if entry is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or {key: found.get(key) for key in known} != known:
        return None
    remembered = found.get("sha256")
    return remembered if isinstance(remembered, str) and len(remembered) == 64 else None


def _remember(entry: Path | None, facts: dict[str, Any]) -> None:
    if entry is None:
        return
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(temporary, entry)
