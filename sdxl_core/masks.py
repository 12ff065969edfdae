"""Masks as arithmetic on arrays: grown, feathered, cut down to latent cells, and pasted by. Imports no torch.

A mask is (h, w) uint8: 255 is repainted, 0 stays, and what lies between is repainted in part.
"""

import numpy as np
from numpy.typing import NDArray

from sdxl_core.source_pictures import Pixels

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, the last two one past the end."""


def grow(mask: Pixels, pixels: int) -> Pixels:
    """Every value spreads to where a lower one stands up to `pixels` away, in a square."""
    for axis in (0, 1):
        widths = [(pixels, pixels) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(mask, widths)
        mask = np.lib.stride_tricks.sliding_window_view(padded, 2 * pixels + 1, axis=axis).max(axis=-1)
    return mask


def feather(mask: Pixels, pixels: int) -> Pixels:
    """How much of the new picture shows: 0 where the mask is 0, rising over `pixels` pixels inside it to 255.

    Nothing outside the mask is touched, and nothing inside it becomes 0, however thin it is. The border of the picture
    is no edge.
    """
    inside = mask > 0
    ramp = np.zeros(mask.shape, np.uint32)
    for _ in range(pixels + 1):
        ramp += inside
        inside = _eroded(inside)
    return ((ramp * 255 + (pixels + 1) // 2) // (pixels + 1)).astype(np.uint8)


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    for axis in (0, 1):
        padded = np.pad(inside, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        inside = np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 3, axis=axis).all(axis=-1))
    return inside


def to_cells(mask: Pixels, factor: int) -> NDArray[np.float32]:
    """The highest value in each latent cell of factor x factor pixels, 0 to 1: (h / factor, w / factor).

    The highest, so that a cell is free as soon as one of its pixels is to be repainted; `paste` keeps the others.
    """
    height, width = mask.shape
    cells = mask.reshape(height // factor, factor, width // factor, factor).max(axis=(1, 3))
    return np.asarray(cells.astype(np.float32) / 255)


def paste(below: Pixels, above: Pixels, alpha: Pixels) -> Pixels:
    """`above` over `below`, both (h, w, 3); bytes are `below`'s where alpha (h, w) is 0, `above`'s where it is 255."""
    weight = alpha[..., None].astype(np.uint32)
    return ((above * weight + below * (255 - weight) + 127) // 255).astype(np.uint8)


def bounds(mask: Pixels) -> Box:
    """The smallest box that holds all that is not 0; the whole mask where everything is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, mask.shape[0], mask.shape[1]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def widen(box: Box, padding: int, aspect: float, within: tuple[int, int]) -> Box:
    """The box with padding all round, brought to width / height near `aspect`, moved to lie inside (height, width).

    Where the picture has no room for that shape, the box stops at its border and the shape differs.
    """
    top, left, bottom, right = box
    height, width = bottom - top + 2 * padding, right - left + 2 * padding
    height, width = max(height, round(width / aspect)), max(width, round(height * aspect))
    spans = []
    for low, high, length, limit in ((top, bottom, height, within[0]), (left, right, width, within[1])):
        length = min(length, limit)
        start = min(max((low + high - length) // 2, 0), limit - length)
        spans.append((start, start + length))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]
