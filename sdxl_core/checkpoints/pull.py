"""Fetch a published model file from the Hugging Face hub: resumable, verified, whole or not at all.

The hub's own `hf_hub_download` drops what it has when it is broken off (2.x), so the bytes are fetched here, over its
session, with its names, its token and its endpoint.
"""

import contextlib
import errno
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_core.checkpoints.hashing import file_hash, remember_hash
from sdxl_core.config import ModelFile
from sdxl_core.errors import CheckpointError
from sdxl_core.output import publish
from sdxl_core.progress import SILENT, Reporter

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run the command again: it goes on where it broke off"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the bytes come from and what they must be."""

    name: str
    url: str
    headers: dict[str, str]
    size: int
    sha256: str | None


def pull_file(
    file: ModelFile,
    folder: Path,
    *,
    endpoint: str | None = None,
    hash_cache: Path | None = None,
    retries: int = 5,
    reporter: Reporter = SILENT,
) -> Path:
    """Fetch a published file into a models folder; returns at once when it is there and right.

    What was fetched before a break stays beside it as `NAME.part` and is gone on with. The final name appears only
    after size and sha256 were verified.

    Args:
        file: what to fetch; its `repo`, and `bytes` and `sha256` where known.
        folder: where to put it; made if need be.
        endpoint: base address of the hub; None for the hub's own settings (`HF_ENDPOINT`).
        hash_cache: see `file_hash`.
        retries: how often a broken connection is taken up again without any byte arriving.
        reporter: counts bytes fetched, then hashed.

    Raises:
        CheckpointError: no published place, no connection, no room, or not the right file.
    """
    if file.repo is None:
        raise CheckpointError(f"{file.name}: no published place is known for it")
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", file.name, re.ASCII):
        raise CheckpointError(f"{file.name!a}: not a plain file name")
    target = folder / file.name
    if target.exists():
        _verify(target, file.bytes, file.sha256, hash_cache, reporter, "move it away, then pull again")
        return target
    with _explained(file.repo, file.name):
        folder.mkdir(parents=True, exist_ok=True)
        source = _locate(file, endpoint)
        part = folder / f"{file.name}.part"
        with _only_one(part):
            _fetch(source, part, retries, reporter)
            try:
                _verify(part, source.size, source.sha256, None, reporter, "it was removed: pull again")
            except CheckpointError:
                part.unlink(missing_ok=True)
                raise
            publish(part, target, overwrite=True)
            if source.sha256 is not None:
                remember_hash(target, source.sha256, hash_cache)
    return target


def _locate(file: ModelFile, endpoint: str | None) -> _Source:
    """Ask the hub where the file is; a published file that is not what the preset says is refused before any byte."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    repo = file.repo or ""
    found: HfFileMetadata = get_hf_file_metadata(hf_hub_url(repo, file.name, endpoint=endpoint), endpoint=endpoint)
    published = found.etag if found.etag is not None and _SHA256.fullmatch(found.etag) else None
    for what, ours, theirs in (("bytes", file.bytes, found.size), ("sha256", file.sha256, published)):
        if ours is not None and theirs is not None and ours != theirs:
            raise CheckpointError(f"{file.name}: {repo} now publishes another file ({what} {theirs} instead of {ours})")
    size = file.bytes if file.bytes is not None else found.size
    if size is None:
        raise CheckpointError(f"{file.name}: {repo} does not say how large it is")
    url = hf_hub_url(repo, file.name, revision=found.commit_hash, endpoint=endpoint)
    return _Source(file.name, url, build_hf_headers(), size, file.sha256 or published)


def _fetch(source: _Source, part: Path, retries: int, reporter: Reporter) -> None:
    """Bring the part file to its full size, from where it is."""
    have = part.stat().st_size if part.exists() else 0
    if have > source.size:
        part.unlink()
        have = 0
    free = shutil.disk_usage(part.parent).free
    if free < source.size - have:
        raise CheckpointError(
            f"{part.parent}: {source.size - have} bytes are needed and {free} are free",
            hint="make room, or choose another models folder",
        )
    reporter.start(f"fetching {source.name}", source.size, "B")
    reporter.advance(have)
    left = retries
    try:
        while have < source.size:
            before = have
            have, broken = _stream(source, part, have, reporter)
            if have >= source.size:
                break
            left = retries if have > before else left - 1
            if left < 0:
                raise broken or CheckpointError(f"{source.name}: the connection broke off", hint=_AGAIN)
            time.sleep(0.1 * 2 ** (retries - left))
    finally:
        reporter.finish()


def _stream(source: _Source, part: Path, have: int, reporter: Reporter) -> tuple[int, Exception | None]:
    """One request for what is missing; returns the size now, and what broke the connection if something did."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**source.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with get_session().stream("GET", source.url, headers=headers) as response, open(part, "ab") as out:
            hf_raise_for_status(response)
            if have and response.status_code != 206:  # the server sends the whole file again
                out.truncate(0)
                reporter.advance(-have)
                have = 0
            for chunk in response.iter_bytes():  # as they come: a larger chunk would be lost in a break
                out.write(chunk[: source.size - have])
                reporter.advance(min(len(chunk), source.size - have))
                have = min(have + len(chunk), source.size)
    except _transport_error() as error:
        if getattr(error, "response", None) is not None:
            raise  # an answer, not a broken line
        return part.stat().st_size, error
    return have, None


def _verify(
    path: Path, size: int | None, sha256: str | None, cache: Path | None, reporter: Reporter, hint: str
) -> None:
    has = path.stat().st_size
    if size is not None and has != size:
        raise CheckpointError(f"{path}: has {has} bytes, the published file has {size}", hint=hint)
    if sha256 is not None:
        found = file_hash(path, cache=cache, reporter=reporter)
        if found != sha256:
            raise CheckpointError(f"{path}: is not the published file: its sha256 is {found}", hint=hint)


@contextlib.contextmanager
def _only_one(part: Path) -> Iterator[None]:
    """Keep two processes from writing one part file."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    lock = part.with_name(f".{part.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except TimeoutError as error:
            raise CheckpointError(f"{part}: another process is fetching it") from error
        stack.callback(lock.unlink, missing_ok=True)
        yield


@contextlib.contextmanager
def _explained(repo: str, name: str) -> Iterator[None]:
    """Turn what the hub's library raises into our errors."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"accept the terms at https://huggingface.co/{repo}, then `hf auth login`"
        raise CheckpointError(f"{repo} asks for its terms to be accepted first", hint=hint) from error
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(f"the hub has no {name} in {repo}") from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(f"cannot fetch {name}: the hub is switched off", hint="unset HF_HUB_OFFLINE") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(f"cannot fetch {name}: the hub answers {status}", hint=_AGAIN) from error
    except errors.FileMetadataError as error:
        raise CheckpointError(f"cannot fetch {name}: no hub answers at that address") from error
    except _transport_error() as error:
        raise CheckpointError(f"cannot fetch {name}: {error or type(error).__name__}", hint=_AGAIN) from error
    except OSError as error:
        advice = "make room, then pull again" if error.errno == errno.ENOSPC else "choose another models folder"
        place = error.filename or name
        raise CheckpointError(f"cannot write {place}: {error.strerror or error}", hint=advice) from error


def _transport_error() -> Any:
    """The root of the errors of the HTTP library under the hub's own (httpx in version 1, httpx2 in 2)."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]
