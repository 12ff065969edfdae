"""Safetensors files made by hand: sound ones, sparse ones of any size, and broken ones; and a disk that is full."""

import json
import math
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdxl_core.checkpoints.header import DTYPE_BITS

MANIFESTS = Path(__file__).parent / "data" / "manifests"


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """No file can grow beyond `count` bytes: what a full disk is to a program.

    Python would leave what fits of the bytecode of modules that are imported meanwhile, and fail with it ever after.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written


def header_table(shapes: Mapping[str, Sequence[int]], dtype: str = "F16") -> dict[str, Any]:
    """The JSON part of a file with these tensors, one after the other."""
    table: dict[str, Any] = {}
    end = 0
    for key, shape in shapes.items():
        name = "I64" if key.endswith("position_ids") else dtype
        size = math.prod(shape) * DTYPE_BITS[name] // 8
        table[key] = {"dtype": name, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return table


def raw_file(table: Any, data: bytes = b"") -> bytes:
    """A file of this JSON part (given as a value or as text) and these tensor bytes."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def sparse_file(
    path: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "F16", metadata: Mapping[str, str] | None = None
) -> Path:
    """A sound file of zeros that takes no room on the disk, 7 GB too."""
    table = header_table(shapes, dtype)
    end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    start = raw_file({"__metadata__": metadata, **table} if metadata else table)
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(len(start) + end)
    return path


def published_shapes(kind: str) -> dict[str, list[int]]:
    """Key -> shape of the published `base` or `refiner`."""
    shapes: dict[str, list[int]] = json.loads((MANIFESTS / f"sd_xl_{kind}_1.0.json").read_text())
    return shapes
