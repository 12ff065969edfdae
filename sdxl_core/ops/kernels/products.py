"""Matrix products on a GPU with what follows them in the same kernel: scales, bias, the gate of GEGLU, residual.

Numbers are added in float32, in one order for each tiling; nothing is added across programs, so that a run gives the
same bits as the one before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sdxl_core.ops.fp8 import Scaled
from sdxl_core.ops.kernels.gates import gelu


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut for a GPU.

    Args:
        rows: of the result, one tile; a power of two, as all sizes here.
        columns: of the result, one tile; gated products hold the gate's tile of the same size too.
        depth: numbers of a row that are loaded at once.
        warps: of a program.
        stages: loads that are under way while one is computed with.
        described: move tiles by the copy engine (Hopper and later), which takes pitches that are multiples of 16 bytes.
        lasting: as many programs as the GPU has multiprocessors, each with many tiles, the next one's loads under way
            while one is written; otherwise a program for each tile.
        exact: eight-bit products are moved to float32 every `depth` numbers; otherwise a Hopper GPU keeps 14 bits of
            them until the end.
        more: columns of a tile beside the others, by a product of their own; only where tiles are `described`. 128 and
            32 are 160, which divides 640, 1280 and all their multiples.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    described: bool = False
    lasting: bool = False
    exact: bool = False
    more: int = 0


_DEFAULT: Mapping[tuple[bool, bool, bool], Tiling] = MappingProxyType(
    {
        (True, False, False): Tiling(128, 128, 64, 4, 3, described=True),
        (True, False, True): Tiling(128, 128, 64, 8, 3, described=True, lasting=True),
        (True, True, False): Tiling(128, 128, 128, 8, 4, described=True),
        (True, True, True): Tiling(128, 128, 128, 8, 4, described=True),
        (False, False, False): Tiling(128, 128, 32, 8, 4),
        (False, False, True): Tiling(128, 64, 32, 4, 4),
        (False, True, False): Tiling(128, 128, 64, 8, 4),
        (False, True, True): Tiling(128, 64, 64, 8, 4),
    }
)
"""By whether the GPU is a Hopper, the numbers have eight bits, and there is a gate."""

_INTERPRETED = Tiling(16, 32, 32, 4, 2)
"""On the CPU, where Triton interprets its kernels: for tests."""


def tiling_for(x: Tensor, n: int, *, gated: bool) -> Tiling:
    """The tiling that was found best for rows x (m, k) and n columns of the result."""
    if x.device.type != "cuda":
        return _INTERPRETED
    hopper = torch.cuda.get_device_capability(x.device)[0] == 9 and x.shape[1] * x.itemsize % 16 == 0 and n % 8 == 0
    return _DEFAULT[hopper, x.itemsize == 1, gated]


def gate_of_woven(weight: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """(rows, woven weight, bias) -> GEGLU of the linear layer, faster than a library's product and a kernel after it.

    Args:
        weight: (2 n, k) that is to be woven.

    Returns:
        None where it is not known to be faster: off Hopper GPUs, and where tiles are not whole.
    """
    how = _DEFAULT[True, False, True]
    whole = weight.shape[1] % how.depth == 0 and len(weight) % (2 * how.columns) == 0
    if not (whole and weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16)):
        return None
    hopper = torch.cuda.get_device_capability(weight.device)[0] == 9
    return partial(linear, gated=True, woven=True) if hopper else None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    woven: bool = False,
    tiling: Tiling | None = None,
) -> Tensor:
    """A linear layer, with a GELU gate or a residual: x W^T + b + residual, or (x V^T + b) gelu(x G^T + c).

    Args:
        x: (m, k) float16 or bfloat16, contiguous, as all tensors here.
        weight: (n, k), or with `gated` (2 n, k), value above gate.
        bias: (n,) or (2 n,).
        residual: (m, n), added at the end; not with `gated`.
        gated: GEGLU with the exact GELU.
        woven: the weight is woven (`sdxl_core.ops.woven`), bias and scales are not.
        tiling: None for what was found best.

    Returns:
        (m, n) of the type of x.
    """
    return _launch(x, None, weight, None, bias, residual, gated, woven, tiling, x.dtype)


def scaled_linear(
    x: Scaled,
    weight: Scaled,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    woven: bool = False,
    tiling: Tiling | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """The same of matrices in eight bits, a `sdxl_core.ops.fp8.Linear`."""
    return _launch(x.values, x.scale, weight.values, weight.scale, bias, residual, gated, woven, tiling, dtype)


def _launch(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gated: bool,
    woven: bool,
    tiling: Tiling | None,
    dtype: torch.dtype,
) -> Tensor:
    (m, k), n = x.shape, len(weight) // 2 if gated else len(weight)
    out = torch.empty(m, n, dtype=dtype, device=x.device)
    how = tiling or tiling_for(x, n, gated=gated)
    programs = triton.cdiv(m, how.rows) * triton.cdiv(n, how.columns + how.more)
    if how.lasting:
        programs = min(programs, _multiprocessors(x.device))
    operands: list[Any] = [x, weight, out, None, None]
    if how.described:
        wide = how.columns * (2 if woven else 1)
        operands[:3] = (
            _described(x, how.depth, how.rows),
            _described(weight, how.depth, wide),
            _described(out, how.columns, how.rows),
        )
        if how.more:
            operands[3:] = _described(weight, how.depth, how.more), _described(out, how.more, how.rows)
    with torch.cuda.device_of(x):
        _product[(programs,)](
            *operands,
            x_scale,
            weight_scale,
            bias,
            residual,
            m,
            n,
            k,
            ROWS=how.rows,
            COLUMNS=how.columns,
            MORE=how.more,
            DEPTH=how.depth,
            GATED=gated,
            WOVEN=woven,
            DESCRIBED=how.described,
            LASTING=how.lasting,
            EVEN=k % how.depth == 0,
            IMPRECISE=how.depth if how.exact else None,
            num_warps=how.warps,
            num_stages=how.stages,
        )
    return out


def _described(x: Tensor, columns: int, rows: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x, [rows, columns])


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit
def _product(
    x, weight, out, weight_more, out_more, x_scale, weight_scale, bias, residual, m, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr,
    GATED: tl.constexpr, WOVEN: tl.constexpr, DESCRIBED: tl.constexpr, LASTING: tl.constexpr, EVEN: tl.constexpr,
    IMPRECISE: tl.constexpr,
):  # fmt: skip
    PITCH: tl.constexpr = COLUMNS + MORE
    tiles_m, tiles_n = tl.cdiv(m, ROWS), tl.cdiv(n, PITCH)
    if LASTING:
        # One loop of both, so that the next tile's loads do not wait for this one's end.
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
            row, column = _place(tile, tiles_m, tiles_n)
            value = tl.zeros((ROWS, 2 * COLUMNS if WOVEN else COLUMNS), tl.float32)
            other = tl.zeros((ROWS, MORE or COLUMNS), tl.float32)
            for start in range(0, k, DEPTH):
                value, other = _step(
                    x, weight, weight_more, value, other, row * ROWS, column * PITCH, start, m, n, k,
                    ROWS, COLUMNS, MORE, DEPTH, GATED, WOVEN, DESCRIBED, EVEN, IMPRECISE,
                )  # fmt: skip
            _finish(
                out, value, other, x_scale, weight_scale, bias, residual, row * ROWS, column * PITCH, m, n,
                ROWS, COLUMNS, GATED, WOVEN, DESCRIBED,
            )  # fmt: skip
            if MORE:
                _finish(
                    out_more, other, other, x_scale, weight_scale, bias, residual,
                    row * ROWS, column * PITCH + COLUMNS, m, n, ROWS, MORE, GATED, WOVEN, DESCRIBED,
                )  # fmt: skip
    else:
        row, column = _place(tl.program_id(0), tiles_m, tiles_n)
        value = tl.zeros((ROWS, 2 * COLUMNS if WOVEN else COLUMNS), tl.float32)
        other = tl.zeros((ROWS, MORE or COLUMNS), tl.float32)
        for start in range(0, k, DEPTH):
            value, other = _step(
                x, weight, weight_more, value, other, row * ROWS, column * PITCH, start, m, n, k,
                ROWS, COLUMNS, MORE, DEPTH, GATED, WOVEN, DESCRIBED, EVEN, IMPRECISE,
            )  # fmt: skip
        _finish(
            out, value, other, x_scale, weight_scale, bias, residual, row * ROWS, column * PITCH, m, n,
            ROWS, COLUMNS, GATED, WOVEN, DESCRIBED,
        )  # fmt: skip
        if MORE:
            _finish(
                out_more, other, other, x_scale, weight_scale, bias, residual,
                row * ROWS, column * PITCH + COLUMNS, m, n, ROWS, MORE, GATED, WOVEN, DESCRIBED,
            )  # fmt: skip


@triton.jit
def _place(tile, tiles_m, tiles_n):
    # Eight rows of tiles at a time, column by column: programs that run together share what they load in the L2 cache.
    group = tile // (8 * tiles_n)
    rows = min(tiles_m - group * 8, 8)
    within = tile % (8 * tiles_n)
    return group * 8 + within % rows, within // rows


@triton.jit
def _step(
    x, weight, weight_more, value, other, row, column, start, m, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr,
    GATED: tl.constexpr, WOVEN: tl.constexpr, DESCRIBED: tl.constexpr, EVEN: tl.constexpr, IMPRECISE: tl.constexpr,
):  # fmt: skip
    """Add the products of `DEPTH` numbers."""
    TWICE: tl.constexpr = GATED and not WOVEN
    WIDTH: tl.constexpr = 2 * COLUMNS if WOVEN else COLUMNS
    if WOVEN:
        column, n = 2 * column, 2 * n
    if DESCRIBED:
        a = x.load([row, start])
        b = weight.load([column, start])
        value = tl.dot(a, b.T, value, max_num_imprecise_acc=IMPRECISE)
        if TWICE:
            other = tl.dot(a, weight.load([n + column, start]).T, other, max_num_imprecise_acc=IMPRECISE)
        if MORE:
            c = weight_more.load([column + COLUMNS, start])
            other = tl.dot(a, c.T, other, max_num_imprecise_acc=IMPRECISE)
    else:
        # Rows past the end read the first ones again: what becomes of them is not written.
        rows = ((row + tl.arange(0, ROWS)) % m).to(tl.int64)
        columns = ((column + tl.arange(0, WIDTH)) % n).to(tl.int64)
        depth = start + tl.arange(0, DEPTH)
        a_at, b_at = x + rows[:, None] * k + depth[None, :], weight + columns[None, :] * k + depth[:, None]
        c_at = weight + (columns + n)[None, :] * k + depth[:, None]
        if EVEN:
            a = tl.load(a_at)
            value = tl.dot(a, tl.load(b_at), value, max_num_imprecise_acc=IMPRECISE)
            if TWICE:
                other = tl.dot(a, tl.load(c_at), other, max_num_imprecise_acc=IMPRECISE)
        else:
            a = tl.load(a_at, mask=depth[None, :] < k, other=0.0)
            b = tl.load(b_at, mask=depth[:, None] < k, other=0.0)
            value = tl.dot(a, b, value, max_num_imprecise_acc=IMPRECISE)
            if TWICE:
                c = tl.load(c_at, mask=depth[:, None] < k, other=0.0)
                other = tl.dot(a, c, other, max_num_imprecise_acc=IMPRECISE)
    return value, other


@triton.jit
def _finish(
    out, value, gate, x_scale, weight_scale, bias, residual, row, column, m, n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GATED: tl.constexpr, WOVEN: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Write a tile."""
    if WOVEN:
        # Eight columns are what a thread's neighbours hold: so nothing moves between threads.
        value, gate = tl.split(value.reshape(ROWS, COLUMNS // 8, 2, 8).permute(0, 1, 3, 2))
        value, gate = value.reshape(ROWS, COLUMNS), gate.reshape(ROWS, COLUMNS)
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    in_m, in_n = rows < m, columns < n
    if x_scale is not None:
        of_rows = tl.load(x_scale + rows, mask=in_m, other=0.0)[:, None]
        value *= of_rows * tl.load(weight_scale + columns, mask=in_n, other=0.0)[None, :]
        if GATED:
            gate *= of_rows * tl.load(weight_scale + n + columns, mask=in_n, other=0.0)[None, :]
    if bias is not None:
        value += tl.load(bias + columns, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if GATED:
            gate += tl.load(bias + n + columns, mask=in_n, other=0.0).to(tl.float32)[None, :]
    if GATED:
        value *= gelu(gate)
    at = rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = in_m[:, None] & in_n[None, :]
    if residual is not None:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if DESCRIBED:
        out.store([row, column], value.to(out.dtype))
    else:
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
