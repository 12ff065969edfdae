"""Tensors into a safetensors file that appears whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdxl_core.checkpoints.load import TORCH_DTYPES
from sdxl_core.output import whole_file
from sdxl_core.progress import SILENT, Reporter

_FORMAT_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    reporter: Reporter = SILENT,
) -> None:
    """Write tensors as one safetensors file; the same tensors give the same bytes. Holds one tensor's copy at a time.

    Args:
        path: the file to make or replace; its folder is made if need be.
        tensors: key -> tensor on any device.
        dtype: of floating-point tensors on disk; None keeps each one's.
        metadata: text pairs for the header.
        reporter: counts bytes.

    Raises:
        OutputError: the disk refused it.
    """
    stored = {key: dtype if dtype is not None and t.is_floating_point() else t.dtype for key, t in tensors.items()}
    # Wide elements first, so that every tensor starts at a multiple of its element.
    keys = sorted(tensors, key=lambda key: (-stored[key].itemsize, key))
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key in keys:
        size = tensors[key].numel() * stored[key].itemsize
        name = _FORMAT_NAMES[stored[key]]
        table[key] = {"dtype": name, "shape": list(tensors[key].shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    reporter.start(f"writing {path.name}", end, "B")
    try:
        with whole_file(path, overwrite=True) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for key in keys:
                raw = tensors[key].detach().to("cpu", stored[key]).contiguous().reshape(-1).view(torch.uint8)
                file.write(memoryview(raw.numpy()))  # type: ignore[arg-type]
                reporter.advance(raw.numel())
    finally:
        reporter.finish()
