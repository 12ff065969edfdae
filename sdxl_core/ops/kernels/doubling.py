"""Doubling the sides of a map."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LINE, _TILE = 64, 4096


def interleave(maps: Tensor, bias: Tensor) -> Tensor:
    """Four maps, one for each parity of rows and columns, laid into each other; costs reading and writing them once.

    Args:
        maps: (b, 4 c, h + 1, w + 1) channels_last: for parity (p, q) the channels from (2 p + q) c on, of which rows
            p to p + h - 1 and columns q to q + w - 1 count.
        bias: (c,), added.

    Returns:
        (b, c, 2 h, 2 w) channels_last, of the maps' dtype.
    """
    maps = maps.contiguous(memory_format=torch.channels_last)
    b, four, height, width = maps.shape
    c, height, width = four // 4, 2 * (height - 1), 2 * (width - 1)
    out = torch.empty(b, c, height, width, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
    pixels = b * height * width
    grid = (triton.cdiv(c, _LINE) * triton.cdiv(pixels, _TILE // _LINE),)
    with torch.cuda.device_of(maps):
        _interleave[grid](maps, bias, out, pixels, height, width, c, ROWS=_TILE // _LINE, COLUMNS=_LINE, num_warps=4)
    return out


@triton.jit
def _interleave(maps, bias, out, pixels, height, width, c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(c, COLUMNS)
    channel = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    pixel = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    seen = (pixel < pixels)[:, None] & (channel < c)[None, :]
    x = pixel % width
    y = pixel // width % height
    image = pixel // width // height
    # The row of the maps: y // 2 + y % 2, half of y rounded up.
    place = (image * (height // 2 + 1) + (y + 1) // 2) * (width // 2 + 1) + (x + 1) // 2
    start = (4 * place + 2 * (y % 2) + x % 2).to(tl.int64) * c
    value = tl.load(maps + start[:, None] + channel[None, :], mask=seen, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < c, other=0.0).to(tl.float32)[None, :]
    tl.store(out + pixel.to(tl.int64)[:, None] * c + channel[None, :], value.to(out.dtype.element_ty), mask=seen)
