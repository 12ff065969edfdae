"""Maps side by side."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LINE, _TILE = 64, 4096


def join(x: Tensor, y: Tensor) -> Tensor:
    """The channels of two maps, one after the other; costs reading and writing them once.

    Args:
        x: (b, c, h, w) channels_last.
        y: (b, c', h, w) channels_last, of the same dtype.

    Returns:
        (b, c + c', h, w) channels_last.
    """
    x, y = (part.contiguous(memory_format=torch.channels_last) for part in (x, y))
    b, first, height, width = x.shape
    c, pixels = first + y.shape[1], b * height * width
    out = torch.empty(b, c, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(c, _LINE) * triton.cdiv(pixels, _TILE // _LINE),)
    with torch.cuda.device_of(x):
        _join[grid](x, y, out, pixels, first, c, ROWS=_TILE // _LINE, COLUMNS=_LINE, num_warps=4)
    return out


@triton.jit
def _join(x, y, out, pixels, first, c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(c, COLUMNS)
    channel = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    pixel = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    known = (pixel < pixels)[:, None]
    row = pixel.to(tl.int64)[:, None]
    of_x, of_y = (channel < first)[None, :], ((channel >= first) & (channel < c))[None, :]
    # Where a program has channels of one map alone, the other load is of nothing.
    value = tl.load(x + row * first + channel[None, :], mask=known & of_x, other=0.0)
    other = tl.load(y + row * (c - first) + (channel - first)[None, :], mask=known & of_y, other=0.0)
    tl.store(out + row * c + channel[None, :], tl.where(of_x, value, other), mask=known & (of_x | of_y))
