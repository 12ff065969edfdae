"""What stands before and after the 16 products of a 3x3 convolution by Winograd's F(2x2, 3x3).

Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdxl_core.ops.kernels.activations import silu
from sdxl_core.ops.kernels.norms import joined, measured, shift_of, stride_of, to_channels

_CHANNELS = 64
"""Of a program; in 16 bit a whole line of memory."""

_PLACES = 8
"""Of 2x2 outputs side by side that a program makes at a time."""

_PROGRAMS = 1024
"""Strips of places are made shorter, if need be, until there are as many programs; each strip reads two lines more."""

_LONGEST_STRIP, _SHORTEST_STRIP = 8, 2


def normed_sums(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, shift: Tensor | None = None
) -> Tensor:
    """The sums of inputs of a convolution behind a norm: of SiLU(group norm(x + shift)), zero around the map.

    Args:
        x: (b, c, h, w) channels_last, in float16, bfloat16 or float32.
        weight: (c,), the norm's, as all that follow; see `sdxl_core.ops.kernels.norms.group_norm`.
        bias: (c,).
        groups: divides c.
        eps: added to the variance.
        shift: added to x before all else, or None.

    Returns:
        (16, b h' w', c) of x's dtype, for h' w' = ceil(h / 2) ceil(w / 2) places of 2x2 outputs, row by row.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    b, c, height, width = x.shape
    per_group = c // groups
    moments, cut = measured(x, groups, shift)
    high, wide = (height + 1) // 2, (width + 1) // 2
    out = torch.empty(16, b * high * wide, c, dtype=x.dtype, device=x.device)
    blocks, across, strip = triton.cdiv(c, _CHANNELS), triton.cdiv(wide, _PLACES), _LONGEST_STRIP
    while strip > _SHORTEST_STRIP and blocks * across * triton.cdiv(high, strip) * b < _PROGRAMS:
        strip //= 2
    grid = blocks * across * triton.cdiv(high, strip), b  # other axes than the first end at 65535 programs
    with torch.cuda.device_of(x):
        _normed_sums[grid](
            *(x, shift, stride_of(shift), moments, weight, bias, out, height, width, c, groups, per_group),
            *(cut.chunk, cut.chunks, strip, eps),
            SHIFTED=shift is not None,
            PLACES=_PLACES,
            COLUMNS=_CHANNELS,
            GROUPS=triton.next_power_of_2(min(groups, (_CHANNELS - 2) // per_group + 2)),
            CHUNKS=cut.chunks_compiled_for,
            num_warps=4,
        )
    return out


def outputs(products: Tensor, like: Tensor, added: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """A convolution's result from its products, plus a map and a bias where there are, rounded once.

    Args:
        products: (16, b h' w', c), of the sums of inputs and those of weights.
        like: (b, any, h, w), whose size the result has.
        added: (b, c, h, w) channels_last, or None.
        bias: (c,), or None.

    Returns:
        (b, c, h, w) channels_last, of the products' dtype.
    """
    (b, _, height, width), (_, places, c) = like.shape, products.shape
    size = b, c, height, width
    out = torch.empty(size, dtype=products.dtype, device=products.device, memory_format=torch.channels_last)
    if added is not None:
        added = added.contiguous(memory_format=torch.channels_last)
    grid = (triton.cdiv(c, _CHANNELS) * triton.cdiv(places, _PLACES),)  # other axes end at 65535 programs
    with torch.cuda.device_of(products):
        _outputs[grid](
            *(products, added, bias, out, height, width, c, places),
            ADDED=added is not None,
            BIASED=bias is not None,
            PLACES=_PLACES,
            COLUMNS=_CHANNELS,
            num_warps=4,
        )
    return out


@triton.jit
def _cell(x, y, column, channel, inside, height, width, c):
    """One line of the map, which begins at x, at some columns, (places, channels)."""
    seen = ((column >= 0) & (column < width) & (y >= 0) & (y < height))[:, None] & inside[None, :]
    return tl.load(x + column[:, None] * c + channel[None, :], mask=seen, other=0.0)


@triton.jit
def _line(x, y, place, channel, inside, height, width, c):
    """What the places see of a line, as it lies in memory: four columns."""
    x += y.to(tl.int64) * width * c  # a map of the largest pictures has more than 2^31 numbers
    first = _cell(x, y, 2 * place - 1, channel, inside, height, width, c)
    second = _cell(x, y, 2 * place, channel, inside, height, width, c)
    third = _cell(x, y, 2 * place + 1, channel, inside, height, width, c)
    fourth = _cell(x, y, 2 * place + 2, channel, inside, height, width, c)
    return first, second, third, fourth


@triton.jit
def _seen(cell, y, column, height, width, factor, summand):
    """What the convolution sees of them: nothing around the map."""
    value = silu(cell.to(tl.float32) * factor[None, :] + summand[None, :])
    return tl.where(((column >= 0) & (column < width) & (y >= 0) & (y < height))[:, None], value, 0.0)


@triton.jit
def _sums(first, second, third, fourth, y, place, height, width, factor, summand):
    """The four sums over columns."""
    first = _seen(first, y, 2 * place - 1, height, width, factor, summand)
    second = _seen(second, y, 2 * place, height, width, factor, summand)
    third = _seen(third, y, 2 * place + 1, height, width, factor, summand)
    fourth = _seen(fourth, y, 2 * place + 2, height, width, factor, summand)
    return first - third, second + third, third - second, second - fourth


@triton.jit
def _store(out, plane, at, seen, first, second, third, fourth):
    """Four sums, each in a plane of its own."""
    kind = out.dtype.element_ty
    tl.store(out + at, first.to(kind), mask=seen)
    tl.store(out + plane + at, second.to(kind), mask=seen)
    tl.store(out + 2 * plane + at, third.to(kind), mask=seen)
    tl.store(out + 3 * plane + at, fourth.to(kind), mask=seen)


@triton.jit(do_not_specialize=("stride", "groups", "per_group", "chunk", "chunks", "strip", "height", "width"))
def _normed_sums(
    x, shift, stride, moments, weight, bias, out, height, width, c, groups, per_group, chunk, chunks, strip, eps,
    SHIFTED: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """A strip of places from top to bottom: of four lines that a place sees, the next one sees two again."""
    blocks = tl.cdiv(c, COLUMNS)
    block, strip_number = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    channel = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < c
    image = tl.program_id(1)

    group = block * COLUMNS // per_group + tl.arange(0, GROUPS)
    members = inside[:, None] & ((channel // per_group)[:, None] == group[None, :])
    mean, variance = joined(
        moments, image * groups + group, group < groups, height * width, chunk, chunks, per_group, CHUNKS
    )
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    factor *= to_channels(1.0 / tl.sqrt(variance + eps), members)
    summand = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    # (x + shift - mean) factor + summand, by one multiplication each: what that loses is less than x was rounded by.
    summand += (shift_of(shift, stride, image, channel, inside, SHIFTED) - to_channels(mean, members)) * factor

    high, wide = (height + 1) // 2, (width + 1) // 2
    across = tl.cdiv(wide, PLACES)
    place = strip_number % across * PLACES + tl.arange(0, PLACES)
    first = strip_number // across * strip
    last = tl.minimum(first + strip, high)
    x += image.to(tl.int64) * height * width * c
    plane = tl.num_programs(1).to(tl.int64) * high * wide * c
    out += image.to(tl.int64) * high * wide * c
    at = place[:, None] * c + channel[None, :]
    seen = (place < wide)[:, None] & inside[None, :]

    p0, p1, p2, p3 = _line(x, 2 * first - 1, place, channel, inside, height, width, c)
    q0, q1, q2, q3 = _line(x, 2 * first, place, channel, inside, height, width, c)
    r0, r1, r2, r3 = _line(x, 2 * first + 1, place, channel, inside, height, width, c)
    s0, s1, s2, s3 = _line(x, 2 * first + 2, place, channel, inside, height, width, c)
    a0, a1, a2, a3 = _sums(p0, p1, p2, p3, 2 * first - 1, place, height, width, factor, summand)
    b0, b1, b2, b3 = _sums(q0, q1, q2, q3, 2 * first, place, height, width, factor, summand)
    for row in range(first, last):
        y = 2 * row + 1
        p0, p1, p2, p3 = r0, r1, r2, r3
        q0, q1, q2, q3 = s0, s1, s2, s3
        # Two lines are on their way while the two before are in work; behind the strip there is nothing to load.
        ahead = tl.where(row + 1 < last, y + 2, height)
        r0, r1, r2, r3 = _line(x, ahead, place, channel, inside, height, width, c)
        s0, s1, s2, s3 = _line(x, ahead + 1, place, channel, inside, height, width, c)
        c0, c1, c2, c3 = _sums(p0, p1, p2, p3, y, place, height, width, factor, summand)
        to = out + row * wide * c
        _store(to, plane, at, seen, a0 - c0, a1 - c1, a2 - c2, a3 - c3)
        _store(to + 4 * plane, plane, at, seen, b0 + c0, b1 + c1, b2 + c2, b3 + c3)
        _store(to + 8 * plane, plane, at, seen, c0 - b0, c1 - b1, c2 - b2, c3 - b3)
        a0, a1, a2, a3 = c0, c1, c2, c3
        c0, c1, c2, c3 = _sums(q0, q1, q2, q3, y + 1, place, height, width, factor, summand)
        _store(to + 12 * plane, plane, at, seen, b0 - c0, b1 - c1, b2 - c2, b3 - c3)
        b0, b1, b2, b3 = c0, c1, c2, c3


@triton.jit
def _product(products, plane, at, seen, i: tl.constexpr):
    return tl.load(products + i * plane + at, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def _of_columns(products, plane, at, seen, i: tl.constexpr):
    """Both outputs of a row of four products."""
    first = _product(products, plane, at, seen, 4 * i)
    second = _product(products, plane, at, seen, 4 * i + 1)
    third = _product(products, plane, at, seen, 4 * i + 2)
    fourth = _product(products, plane, at, seen, 4 * i + 3)
    return first + second + third, second - third - fourth


@triton.jit
def _finish(out, added, value, of_bias, y, column, base, channel, inside, height, width, c, ADDED: tl.constexpr):
    seen = ((y < height) & (column < width))[:, None] & inside[None, :]
    at = (base + (y * width + column)).to(tl.int64)[:, None] * c + channel[None, :]
    value += of_bias[None, :]
    if ADDED:
        value += tl.load(added + at, mask=seen, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=seen)


@triton.jit(do_not_specialize=("height", "width", "places"))
def _outputs(
    products, added, bias, out, height, width, c, places,
    ADDED: tl.constexpr, BIASED: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(c, COLUMNS)
    channel = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < c
    place = tl.program_id(0) // blocks * PLACES + tl.arange(0, PLACES)
    seen = (place < places)[:, None] & inside[None, :]
    at = place.to(tl.int64)[:, None] * c + channel[None, :]
    plane = places.to(tl.int64) * c
    if BIASED:
        of_bias = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    else:
        of_bias = tl.zeros((COLUMNS,), tl.float32)

    a0, a1 = _of_columns(products, plane, at, seen, 0)
    b0, b1 = _of_columns(products, plane, at, seen, 1)
    c0, c1 = _of_columns(products, plane, at, seen, 2)
    d0, d1 = _of_columns(products, plane, at, seen, 3)
    high, wide = (height + 1) // 2, (width + 1) // 2
    image = place // (high * wide)
    y, column = 2 * (place // wide % high), 2 * (place % wide)
    base = tl.where(place < places, image * height * width, 0)
    y = tl.where(place < places, y, height)
    _finish(out, added, a0 + b0 + c0, of_bias, y, column, base, channel, inside, height, width, c, ADDED)
    _finish(out, added, a1 + b1 + c1, of_bias, y, column + 1, base, channel, inside, height, width, c, ADDED)
    _finish(out, added, b0 - c0 - d0, of_bias, y + 1, column, base, channel, inside, height, width, c, ADDED)
    _finish(out, added, b1 - c1 - d1, of_bias, y + 1, column + 1, base, channel, inside, height, width, c, ADDED)
