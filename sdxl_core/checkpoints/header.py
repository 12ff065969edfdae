"""What a safetensors file says about itself in its header. Imports no torch and never reads the weights.

The layout is 8 bytes of header length (little-endian), a JSON object, then the tensors without gaps. Every way a file
can fail to be that is one `CheckpointError` with what to do about it.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from sdxl_core.errors import CheckpointError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""The format's names of dtypes, and bits an element."""


class TensorInfo(NamedTuple):
    """One tensor of the file; `offsets` are its first byte and the one after its last, counted from `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.offsets[1] - self.offsets[0]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: the tensors fill the file from `data_start` to its end without gap or overlap.

    Args:
        path: the file.
        tensors: name -> what it is, in the order of the file's bytes.
        metadata: the free text pairs of the header.
        file_bytes: size of the whole file.
        data_start: position of the first tensor byte.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    file_bytes: int
    data_start: int


def readable(name: str) -> str:
    """A name out of a file as it may stand in a message: printable, at most 120 characters."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def open_checkpoint(path: str | Path) -> FileIO:
    """Open a regular file for reading, unbuffered; never waits on a pipe or a device.

    Raises:
        CheckpointError: missing, a folder, no regular file, or not readable.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            return open(os.open(path, flags), "rb", buffering=0)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        text = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{str(path)!a}: {text}") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: is a folder, not a model file", hint="give one .safetensors file")
    raise CheckpointError(f"{path}: not a regular file (a pipe, socket or device)", hint="give one .safetensors file")


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file; milliseconds for a file of any size.

    Raises:
        CheckpointError: the file is missing, cut off, too long, not safetensors, or its header is not sound.
    """
    path = Path(path)
    with open_checkpoint(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            start = file.read(512)
            length = _header_length(path, start, size)
            file.seek(8)
            raw = _read_all(file, length)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) < length:
        raise CheckpointError(f"{path}: shrank while it was read", hint="wait until it is written, then try again")
    return _parse(raw, path, size)


def _parse(raw: bytes, path: Path, file_bytes: int) -> Header:
    """Check that the JSON part is sound and describes exactly the bytes that follow it."""
    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        _broken(path, f"names more than {MAX_TENSORS} tensors")
    table = _json(raw, path)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        _broken(path, "has metadata that is not text")
    if len(table) > MAX_TENSORS:
        _broken(path, f"names more than {MAX_TENSORS} tensors")
    infos = [(name, _tensor(path, name, entry)) for name, entry in table.items()]
    infos.sort(key=lambda item: item[1].offsets)
    end = 0
    for name, info in infos:
        if info.offsets[0] != end:
            fault = "a hole before" if info.offsets[0] > end else "an overlap at"
            _broken(path, f"leaves {fault} tensor {readable(name)}")
        end = info.offsets[1]
    data_start = 8 + len(raw)
    missing = data_start + end - file_bytes
    if missing > 0:
        _cut_off(path, missing, file_bytes)
    if missing < 0:
        raise CheckpointError(
            f"{path}: {-missing} bytes longer than its header says", hint="the file is damaged: fetch it again"
        )
    return Header(path, MappingProxyType(dict(infos)), MappingProxyType(metadata), file_bytes, data_start)


_NOT_SAFETENSORS = "convert it to .safetensors with a tool you trust; pickles can run code and are never opened here"
_WEB_PAGE = ("a web page: the download went wrong", "fetch the file again, logged in if the site asks for it")
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the model itself", "run `git lfs pull` in that repository"),
    (b"<!doctype html", *_WEB_PAGE),
    (b"<html", *_WEB_PAGE),
    (b"pk\x03\x04", "a PyTorch pickle or another zip archive", _NOT_SAFETENSORS),
    (b"\x80\x02", "a Python pickle", _NOT_SAFETENSORS),
    (b"\x80\x03", "a Python pickle", _NOT_SAFETENSORS),
    (b"\x80\x04", "a Python pickle", _NOT_SAFETENSORS),
    (b"\x80\x05", "a Python pickle", _NOT_SAFETENSORS),
    (b"gguf", "a GGUF file", "give the .safetensors file of the same model"),
    (b"\x89png", "a picture", "give one .safetensors file"),
    (b"\xff\xd8\xff", "a picture", "give one .safetensors file"),
)
"""First bytes in lower case, what such a file is, and what to do."""


def _header_length(path: Path, start: bytes, size: int) -> int:
    """Length of the JSON part, once the first bytes look like safetensors."""
    if size == 0:
        raise CheckpointError(f"{path}: empty", hint="the download or copy did not finish: fetch it again")
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:9] != b"{" or length < 2:
        text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        for magic, what, hint in _FOREIGN:
            if text.startswith(magic) or start.lower().startswith(magic):
                raise CheckpointError(f"{path}: {what}", hint=hint)
        raise CheckpointError(f"{path}: not a safetensors file", hint="give one .safetensors file")
    if length > MAX_HEADER_BYTES:
        _broken(path, f"is {length} bytes long (at most {MAX_HEADER_BYTES})")
    if 8 + length > size:
        _cut_off(path, 8 + length - size, size, "at least ")
    return length


def _read_all(file: FileIO, length: int) -> bytes:
    parts: list[bytes] = []
    while length and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _json(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(list(table), ensure_ascii=False).encode("utf-8")  # names are shown and written: no lone surrogates
    except RecursionError:
        _broken(path, "is nested too deeply")
    except _DuplicateKeyError as error:
        _broken(path, f"names {readable(error.args[0])} twice")
    except (ValueError, TypeError):
        _broken(path, "is not JSON")
    if not isinstance(table, dict):
        _broken(path, "is not a JSON object")
    return table


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _DuplicateKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    """One entry of the header, checked by itself."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        _broken(path, f"does not say dtype, shape and offsets of tensor {readable(name)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        _broken(path, f"gives tensor {readable(name)} an unknown dtype {str(dtype)[:40]!a}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        _broken(path, f"gives tensor {readable(name)} an impossible shape or offset")
    if math.prod(shape) * bits != (offsets[1] - offsets[0]) * 8:
        _broken(path, f"gives tensor {readable(name)} a shape that does not fill its bytes")
    return TensorInfo(dtype, tuple(shape), (offsets[0], offsets[1]))


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _broken(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path}: its header {what}", hint="the file is damaged or not a model: fetch it again")


def _cut_off(path: Path, missing: int, size: int, at_least: str = "") -> NoReturn:
    raise CheckpointError(
        f"{path}: cut off: {at_least}{missing} of {size + missing} bytes are missing",
        hint="the download or copy did not finish: fetch it again",
    )
