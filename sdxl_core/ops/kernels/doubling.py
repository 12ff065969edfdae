"""Doubling the sides of a map."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LINE, _TILE = 64, 4096
_PLACES = 8
"""Pixels of a program that makes sums of nine or of products."""


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


def doubling_sums(x: Tensor) -> Tensor:
    """The sums of inputs of the nine products that double a map and convolve it, see `sdxl_core.ops.winograd`.

    Args:
        x: (b, c, h, w) channels_last.

    Returns:
        (9, b h w, c) of x's dtype: along either side a pixel, what its predecessor has more, what its successor has.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    b, c, height, width = x.shape
    pixels = b * height * width
    out = torch.empty(9, pixels, c, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(c, _LINE) * triton.cdiv(pixels, _PLACES),)  # other axes end at 65535 programs
    with torch.cuda.device_of(x):
        _doubling_sums[grid](x, out, pixels, height, width, c, ROWS=_PLACES, COLUMNS=_LINE, num_warps=4)
    return out


def doubled(products: Tensor, like: Tensor, bias: Tensor) -> Tensor:
    """The doubled map from its nine products.

    Args:
        products: (9, b h w, c).
        like: (b, any, h, w).
        bias: (c,), added.

    Returns:
        (b, c, 2 h, 2 w) channels_last, of the products' dtype.
    """
    (b, _, height, width), (_, pixels, c) = like.shape, products.shape
    size = b, c, 2 * height, 2 * width
    out = torch.empty(size, dtype=products.dtype, device=products.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(c, _LINE) * triton.cdiv(pixels, _PLACES),)  # other axes end at 65535 programs
    with torch.cuda.device_of(products):
        _doubled[grid](products, bias, out, pixels, width, c, ROWS=_PLACES, COLUMNS=_LINE, num_warps=4)
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


@triton.jit
def _pixel(x, at, y, column, height, width, c, inside):
    seen = ((y >= 0) & (y < height) & (column >= 0) & (column < width))[:, None] & inside
    return tl.load(x + at, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def _line_sums(x, at, y, column, height, width, c, inside):
    own = _pixel(x, at, y, column, height, width, c, inside)
    before = _pixel(x, at - c, y, column - 1, height, width, c, inside)
    after = _pixel(x, at + c, y, column + 1, height, width, c, inside)
    return own, before - own, after - own


@triton.jit(do_not_specialize=("pixels", "height", "width"))
def _doubling_sums(x, out, pixels, height, width, c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(c, COLUMNS)
    channel = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    pixel = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    inside = (pixel < pixels)[:, None] & (channel < c)[None, :]
    column, y = pixel % width, pixel // width % height
    at = pixel.to(tl.int64)[:, None] * c + channel[None, :]
    line = width.to(tl.int64) * c
    plane = pixels.to(tl.int64) * c
    a0, a1, a2 = _line_sums(x, at, y, column, height, width, c, inside)
    b0, b1, b2 = _line_sums(x, at - line, y - 1, column, height, width, c, inside)
    c0, c1, c2 = _line_sums(x, at + line, y + 1, column, height, width, c, inside)
    kind = out.dtype.element_ty
    tl.store(out + at, a0.to(kind), mask=inside)
    tl.store(out + plane + at, a1.to(kind), mask=inside)
    tl.store(out + 2 * plane + at, a2.to(kind), mask=inside)
    tl.store(out + 3 * plane + at, (b0 - a0).to(kind), mask=inside)
    tl.store(out + 4 * plane + at, (b1 - a1).to(kind), mask=inside)
    tl.store(out + 5 * plane + at, (b2 - a2).to(kind), mask=inside)
    tl.store(out + 6 * plane + at, (c0 - a0).to(kind), mask=inside)
    tl.store(out + 7 * plane + at, (c1 - a1).to(kind), mask=inside)
    tl.store(out + 8 * plane + at, (c2 - a2).to(kind), mask=inside)


@triton.jit
def _even_and_odd(products, at, plane, inside):
    own = tl.load(products + at, mask=inside, other=0.0).to(tl.float32)
    even = tl.load(products + plane + at, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(products + 2 * plane + at, mask=inside, other=0.0).to(tl.float32)
    return own + even, own + odd


@triton.jit(do_not_specialize=("pixels", "width"))
def _doubled(products, bias, out, pixels, width, c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(c, COLUMNS)
    channel = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    pixel = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    inside = (pixel < pixels)[:, None] & (channel < c)[None, :]
    at = pixel.to(tl.int64)[:, None] * c + channel[None, :]
    plane = pixels.to(tl.int64) * c
    a0, a1 = _even_and_odd(products, at, plane, inside)
    b0, b1 = _even_and_odd(products + 3 * plane, at, plane, inside)
    c0, c1 = _even_and_odd(products + 6 * plane, at, plane, inside)
    owed = tl.load(bias + channel, mask=channel < c, other=0.0).to(tl.float32)[None, :]
    # The even lines of all images lie one doubled line apart from each other.
    corner = 4 * (pixel // width).to(tl.int64) * width + 2 * (pixel % width)
    to = out + corner[:, None] * c + channel[None, :]
    below = to + 2 * width.to(tl.int64) * c
    kind = out.dtype.element_ty
    tl.store(to, (a0 + b0 + owed).to(kind), mask=inside)
    tl.store(to + c, (a1 + b1 + owed).to(kind), mask=inside)
    tl.store(below, (a0 + c0 + owed).to(kind), mask=inside)
    tl.store(below + c, (a1 + c1 + owed).to(kind), mask=inside)
