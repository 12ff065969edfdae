"""A network that enlarges, run on overlapping tiles that fade into each other: less memory, but another picture."""

from collections.abc import Callable

import torch
from torch import Tensor


def blended(run: Callable[[Tensor], Tensor], x: Tensor, *, factor: int, tile: int, overlap: int) -> Tensor:
    """Run on tiles of one size and join them, each weighted by a ramp that falls to its edges.

    Every tile is computed as if it were a picture of its own: what looks at the whole (group norm, attention) sees the
    tile alone, so colour and contrast may drift from tile to tile.

    Args:
        run: (b, c, h, w) -> (b, c', factor h, factor w).
        x: (b, c, h, w).
        factor: rows and columns that one of `x` becomes.
        tile: rows and columns of a tile of `x`; the whole side where that is shorter.
        overlap: rows and columns that neighbours share at the least, below `tile`.

    Returns:
        (b, c', factor h, factor w) float32.
    """
    height, width = x.shape[2:]
    total: Tensor | None = None
    weights = torch.zeros(height * factor, width * factor, device=x.device)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = run(x[:, :, top : top + tile, left : left + tile]).float()
            if total is None:
                total = part.new_zeros(len(x), part.shape[1], height * factor, width * factor)
            rows = slice(top * factor, top * factor + part.shape[2])
            columns = slice(left * factor, left * factor + part.shape[3])
            down, across = (_ramp(side, overlap * factor, x.device) for side in part.shape[2:])
            weight = down[:, None] * across
            total[:, :, rows, columns] += part * weight
            weights[rows, columns] += weight
    assert total is not None
    return total / weights


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First rows of tiles that cover `length`; the last is moved back so that it is as large as the others."""
    return sorted({min(start, max(0, length - tile)) for start in range(0, length, tile - overlap)})


def _ramp(length: int, fade: int, device: torch.device) -> Tensor:
    """Weights of the rows of a tile: rising over `fade` rows from either edge, 1 between."""
    centre = torch.arange(length, device=device) + 0.5
    return torch.minimum(centre, length - centre).clamp(max=max(fade, 1)) / max(fade, 1)
