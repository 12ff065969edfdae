"""Group norm with what stands before and after it, and sums of maps, in as few passes over memory as there can be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdxl_core.ops.kernels.activations import silu

_PROGRAMS = 256
"""How many programs share a group norm: two for each multiprocessor of an H100, where more are no faster."""

_TILE = 4096
"""Elements that a program of 128 threads holds at a time."""

_STAGES = 3
"""Tiles of a group norm that are on their way or in work at a time."""

_LINE = 64
"""Channels that make 128 bytes in 16 bit, what memory moves at best."""

# What a kernel is compiled for is kept small: SDXL's two dozen shapes share a few machine codes.
_FEWEST_GROUPS, _FEWEST_CHUNKS = 8, 64
_ANY = ("stride", "rows", "chunk", "chunks", "groups", "per_group")


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool, shift: Tensor | None = None
) -> Tensor:
    """Group norm of x + shift, then SiLU if wanted; costs reading x twice and writing it once.

    A map is cut into chunks of rows, so that every multiprocessor has a part even where there are few images. The first
    pass measures mean and sum of squared deviations of every group in every chunk; in the second each program puts
    those of its groups together (Chan, Golub, LeVeque 1979, equation 2.1) and normalises its chunk.

    Args:
        x: (b, c, h, w) channels_last, in float16, bfloat16 or float32.
        weight: (c,).
        bias: (c,).
        groups: divides c.
        eps: added to the variance.
        silu: apply SiLU to the result, before it is rounded.
        shift: (c,), (1, c) or (b, c), its channels side by side in memory; added to x before all else, and the sum
            is not rounded: a convolution's bias, an embedding.

    Returns:
        (b, c, h, w) channels_last, of x's dtype.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    c = x.shape[1]
    out = torch.empty_like(x, memory_format=torch.channels_last)
    moments, cut = measured(x, groups, shift)
    with torch.cuda.device_of(x):
        _normalise[cut.grid](
            *(x, shift, stride_of(shift), moments, weight, bias, out, cut.rows, cut.chunk, cut.chunks, c),
            *(cut.channels, groups, c // groups, eps),
            **cut.compiled_for,
            SHIFTED=shift is not None,
            SILU=silu,
            CHUNKS=cut.chunks_compiled_for,
            num_warps=4,
        )
    return out


@dataclass(frozen=True, slots=True)
class Cut:
    """How the maps of a group norm are cut into parts of programs.

    Args:
        rows: of an image, h w.
        chunk: rows of a program.
        channels: of a program, whole groups.
        grid: blocks of channels, chunks, images.
        compiled_for: what the kernels are compiled for.
    """

    rows: int
    chunk: int
    channels: int
    grid: tuple[int, int, int]
    compiled_for: Mapping[str, int]

    @property
    def chunks(self) -> int:
        """How many there are of an image."""
        return self.grid[1]

    @property
    def chunks_compiled_for(self) -> int:
        """The same, or more, for what reads the moments of all."""
        return max(_FEWEST_CHUNKS, 1 << (self.chunks - 1).bit_length())


def measured(x: Tensor, groups: int, shift: Tensor | None) -> tuple[Tensor, Cut]:
    """The first pass of `group_norm`.

    Args:
        x: (b, c, h, w) channels_last.
        groups: divides c.
        shift: added to x, as there.

    Returns:
        Mean and sum of squared deviations, (b, groups, chunks, 2) float32, and what the chunks are.
    """
    b, c, height, width = x.shape
    rows, per_group = height * width, c // groups
    together = _groups_together(groups, per_group)
    blocks, channels = groups // together, together * per_group
    columns = triton.next_power_of_2(channels)
    tile = max(1, _TILE // columns)
    chunk = triton.cdiv(triton.cdiv(rows, triton.cdiv(_PROGRAMS, b * blocks)), tile) * tile
    compiled_for = {
        "ROWS": tile,
        "COLUMNS": columns,
        "GROUPS": max(_FEWEST_GROUPS, triton.next_power_of_2(together)),
        "STAGES": _STAGES,
    }
    cut = Cut(rows, chunk, channels, (blocks, triton.cdiv(rows, chunk), b), compiled_for)
    moments = torch.empty(b, groups, cut.chunks, 2, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        # 128 registers for each of 128 threads: then four programs fit on a multiprocessor.
        _measure[cut.grid](
            *(x, shift, stride_of(shift), moments, rows, chunk, cut.chunks, c, channels, groups, per_group),
            **compiled_for,
            SHIFTED=shift is not None,
            num_warps=4,
            maxnreg=128,
        )
    return moments, cut


def stride_of(shift: Tensor | None) -> int:
    """From the shift of one image to that of the next."""
    return shift.stride(0) if shift is not None and shift.dim() == 2 and len(shift) > 1 else 0


def add(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """The sum x + y + bias, rounded once.

    Args:
        x: (b, c, h, w) channels_last.
        y: the same.
        bias: (c,) or None.

    Returns:
        (b, c, h, w) channels_last, of x's dtype.
    """
    x, y = (part.contiguous(memory_format=torch.channels_last) for part in (x, y))
    c = x.shape[1]
    m = x.numel() // c
    out = torch.empty_like(x, memory_format=torch.channels_last)
    grid = (triton.cdiv(c, _LINE) * triton.cdiv(m, _TILE // _LINE),)
    with torch.cuda.device_of(x):
        _add[grid](
            x,
            y,
            bias,
            out,
            m,
            c,
            BIASED=bias is not None,
            ROWS=_TILE // _LINE,
            COLUMNS=_LINE,
            num_warps=4,
        )
    return out


def _groups_together(groups: int, per_group: int) -> int:
    """How many groups a program reads side by side: the fewest that fill whole lines of memory and divide all.

    Sixteen channels are what Triton must know to be whole for loads of 16 bytes.
    """
    whole = (n for n in range(1, groups) if groups % n == 0 and n * per_group >= _LINE and n * per_group % 16 == 0)
    return next(whole, groups)


@triton.jit
def _to_groups(of_channels, members):
    """Sums over the channels of each group: (channels,) to (groups,)."""
    return tl.sum(tl.where(members, of_channels[:, None], 0.0), axis=0)


@triton.jit
def to_channels(of_groups, members):
    """To each channel what its group has: (groups,) to (channels,)."""
    return tl.sum(tl.where(members, of_groups[None, :], 0.0), axis=1)


@triton.jit
def shift_of(shift, stride, image, channel, inside, SHIFTED: tl.constexpr):
    """What is added to each channel: (channels,)."""
    if SHIFTED:
        return tl.load(shift + image * stride + channel, mask=inside, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(channel).to(tl.float32)


@triton.jit(do_not_specialize=_ANY)
def _measure(
    x,
    shift,
    stride,
    moments,
    rows,
    chunk,
    chunks,
    c,
    channels,
    groups,
    per_group,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and sum of squared deviations of some groups in one chunk of an image.

    Sums are taken of the distance from a pivot, the mean of the first tile. That tile is a T-th of the chunk, so the
    square of its distance from the mean is at most T times the variance: what cancels at the end is that little.
    """
    column, group = tl.arange(0, COLUMNS), tl.arange(0, GROUPS)
    inside = column < channels
    members = inside[:, None] & ((column // per_group)[:, None] == group[None, :])
    channel = tl.program_id(0) * channels + column
    image = tl.program_id(2)
    first = tl.program_id(1) * chunk
    count = tl.minimum(chunk, rows - first)
    x += (image.to(tl.int64) * rows + first) * c
    added = shift_of(shift, stride, image, channel, inside, SHIFTED)

    row = tl.arange(0, ROWS)
    seen = (row < count)[:, None] & inside[None, :]
    value = tl.load(x + row[:, None] * c + channel[None, :], mask=seen, other=0.0).to(tl.float32)
    tile_sums = tl.sum(tl.where(seen, value + added[None, :], 0.0), axis=0)
    pivot = _to_groups(tile_sums, members) / (tl.minimum(count, ROWS) * per_group)
    origin = added - to_channels(pivot, members)
    value = tl.where(seen, value + origin[None, :], 0.0)
    total, squares = value, value * value
    for start in tl.range(ROWS, count, ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        seen = (row < count)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * c + channel[None, :], mask=seen, other=0.0).to(tl.float32)
        value = tl.where(seen, value + origin[None, :], 0.0)
        total += value
        squares += value * value
    elements = count * per_group
    sums = _to_groups(tl.sum(total, axis=0), members)
    squared = _to_groups(tl.sum(squares, axis=0), members) - sums * sums / elements

    known = group < channels // per_group
    place = (image * groups + tl.program_id(0) * (channels // per_group) + group) * chunks
    place = 2 * (place + tl.program_id(1))
    tl.store(moments + place, pivot + sums / elements, mask=known)
    tl.store(moments + place + 1, tl.maximum(squared, 0.0), mask=known)


@triton.jit
def joined(moments, group, known, rows, chunk, chunks, per_group, CHUNKS: tl.constexpr):
    """Mean and variance of groups over all chunks."""
    part = tl.arange(0, CHUNKS)
    place = moments + 2 * (group[:, None] * chunks + part[None, :])
    seen = known[:, None] & (part < chunks)[None, :]
    means = tl.load(place, mask=seen, other=0.0)
    squares = tl.load(place + 1, mask=seen, other=0.0)
    share = tl.where(part < chunks, tl.minimum(chunk, rows - part * chunk), 0).to(tl.float32) / rows
    mean = tl.sum(means * share[None, :], axis=1)
    distance = means - mean[:, None]
    variance = tl.sum(squares, axis=1) / (rows * per_group) + tl.sum(distance * distance * share[None, :], axis=1)
    return mean, variance


@triton.jit(do_not_specialize=_ANY)
def _normalise(
    x,
    shift,
    stride,
    moments,
    weight,
    bias,
    out,
    rows,
    chunk,
    chunks,
    c,
    channels,
    groups,
    per_group,
    eps,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    SILU: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    column, group = tl.arange(0, COLUMNS), tl.arange(0, GROUPS)
    inside = column < channels
    members = inside[:, None] & ((column // per_group)[:, None] == group[None, :])
    channel = tl.program_id(0) * channels + column
    image = tl.program_id(2)

    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    summand = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    first_group = image * groups + tl.program_id(0) * (channels // per_group)
    known = group < channels // per_group
    mean, variance = joined(moments, first_group + group, known, rows, chunk, chunks, per_group, CHUNKS)

    added = shift_of(shift, stride, image, channel, inside, SHIFTED)
    origin = added - to_channels(mean, members)
    factor *= to_channels(1.0 / tl.sqrt(variance + eps), members)

    first = tl.program_id(1) * chunk
    count = tl.minimum(chunk, rows - first)
    before = (image.to(tl.int64) * rows + first) * c
    x += before
    out += before
    for start in tl.range(0, count, ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        seen = (row < count)[:, None] & inside[None, :]
        at = row[:, None] * c + channel[None, :]
        value = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
        value = (value + origin[None, :]) * factor[None, :] + summand[None, :]
        if SILU:
            value = silu(value)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=seen)


@triton.jit
def _add(x, y, bias, out, m, c, BIASED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(c, COLUMNS)
    channel = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    seen = (row < m)[:, None] & (channel < c)[None, :]
    place = row.to(tl.int64)[:, None] * c + channel[None, :]
    value = tl.load(x + place, mask=seen, other=0.0).to(tl.float32)
    value += tl.load(y + place, mask=seen, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + channel, mask=channel < c, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=seen)
