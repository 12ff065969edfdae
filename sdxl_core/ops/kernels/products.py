"""Matrix products on a GPU with the gate of GEGLU in the same kernel, of 16-bit floats or those of eight bits.

Numbers are added in float32 and in one order for each tiling, or on a Hopper GPU in the tensor cores' 14 bits where
they have eight; nothing is added across programs, so that a run gives the same bits as the one before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sdxl_core.ops.kernels.activations import gelu


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut for a GPU.

    Args:
        rows: of the result, one tile; a power of two, as all sizes here.
        columns: of the result, one tile; the product makes twice as many.
        depth: numbers of a row that are loaded at once.
        warps: of a program.
        stages: loads that are under way while one is computed with.
        described: move tiles by the copy engine (Hopper and later), which takes pitches that are multiples of 16 bytes.
        lasting: so many programs for each multiprocessor of the GPU, each with many tiles, the next one's loads under
            way while one is written; 0 for a program for each tile.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    described: bool = False
    lasting: int = 0


_HOPPER: Mapping[bool, Tiling] = MappingProxyType(
    {
        False: Tiling(128, 128, 64, 8, 3, described=True, lasting=1),
        True: Tiling(128, 128, 128, 8, 3, described=True, lasting=1),
    }
)
"""By whether the numbers have eight bits: what was fastest on an H100 at all of SDXL's sizes."""

_OTHER: Mapping[bool, Tiling] = MappingProxyType({False: Tiling(128, 64, 32, 4, 4), True: Tiling(128, 64, 64, 8, 4)})
"""The same for any other GPU; it compiles for them, and was not timed there."""

_INTERPRETED = Tiling(16, 32, 32, 4, 2)
"""On the CPU, where Triton interprets its kernels: for tests."""


def tiling_for(x: Tensor, n: int) -> Tiling:
    """The tiling that was found best for n columns of rows x."""
    if x.device.type != "cuda":
        return _INTERPRETED
    eight_bits, pitch = x.itemsize == 1, x.shape[1] * x.itemsize
    whole = pitch % 16 == 0 and n * x.itemsize % 16 == 0
    return (_HOPPER if whole and torch.cuda.get_device_capability(x.device)[0] == 9 else _OTHER)[eight_bits]


def gate_of_woven(weight: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """`gated_linear` where it is known to be faster than a library's product and a kernel for bias and gate after it.

    Args:
        weight: (2 n, k) that is to be woven.

    Returns:
        None off Hopper GPUs, and where tiles are not whole.
    """
    how = _HOPPER[False]
    whole = weight.shape[1] % how.depth == 0 and len(weight) % (2 * how.columns) == 0
    if not (whole and weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16)):
        return None
    return gated_linear if torch.cuda.get_device_capability(weight.device)[0] == 9 else None


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tiling: Tiling | None = None) -> Tensor:
    """GEGLU with its linear layer: (x V^T + b) gelu(x G^T + c), with the exact GELU.

    Args:
        x: (m, k) float16 or bfloat16, contiguous, as all tensors here.
        weight: (2 n, k) value and gate, woven (`sdxl_core.ops.woven`).
        bias: (2 n,) value beside gate, or None.
        tiling: None for what was found best.

    Returns:
        (m, n) of the type of x.
    """
    return _launch(x, weight, bias, None, tiling)


def gated_in_eight_bits(
    x: Tensor, weight: Tensor, bias: Tensor, value_scale: float, gate_scale: float, tiling: Tiling | None = None
) -> Tensor:
    """A `sdxl_core.ops.fp8.Gated` whose weight is woven."""
    return _launch(x, weight, bias, (value_scale, gate_scale), tiling)


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[float, float] | None, tiling: Tiling | None
) -> Tensor:
    (m, k), n = x.shape, len(weight) // 2
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    how = tiling or tiling_for(x, n)
    programs = triton.cdiv(m, how.rows) * triton.cdiv(n, how.columns)
    if how.lasting:
        programs = min(programs, how.lasting * _multiprocessors(x.device))
    tiles = (x, how.rows, how.depth), (weight, 2 * how.columns, how.depth), (out, how.rows, how.columns)
    with torch.cuda.device_of(x):
        _product[(programs,)](
            *(TensorDescriptor.from_tensor(y, [*size]) if how.described else y for y, *size in tiles),
            *(bias, *(scales or (1.0, 1.0)), m, n, k),
            ROWS=how.rows,
            COLUMNS=how.columns,
            DEPTH=how.depth,
            SCALED=scales is not None,
            DESCRIBED=how.described,
            LASTING=how.lasting > 0,
            EVEN=how.described or k % how.depth == 0,
            num_warps=how.warps,
            num_stages=how.stages,
        )
    return out


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit
def _product(
    x, weight, out, bias, value_scale, gate_scale, m, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SCALED: tl.constexpr,
    DESCRIBED: tl.constexpr, LASTING: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS)
    if LASTING:
        # One loop of both, so that the next tile's loads do not wait for this one's end.
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
            row, column = _place(tile, tiles_m, tiles_n)
            both = tl.zeros((ROWS, 2 * COLUMNS), tl.float32)
            for start in range(0, k, DEPTH):
                both = _step(x, weight, both, row, column, start, m, n, k, ROWS, COLUMNS, DEPTH, DESCRIBED, EVEN)
            _finish(out, both, bias, value_scale, gate_scale, row, column, m, n, ROWS, COLUMNS, SCALED, DESCRIBED)
    else:
        row, column = _place(tl.program_id(0), tiles_m, tiles_n)
        both = tl.zeros((ROWS, 2 * COLUMNS), tl.float32)
        for start in range(0, k, DEPTH):
            both = _step(x, weight, both, row, column, start, m, n, k, ROWS, COLUMNS, DEPTH, DESCRIBED, EVEN)
        _finish(out, both, bias, value_scale, gate_scale, row, column, m, n, ROWS, COLUMNS, SCALED, DESCRIBED)


@triton.jit
def _place(tile, tiles_m, tiles_n):
    # Eight rows of tiles at a time, column by column: programs that run together share what they load in the L2 cache.
    group = tile // (8 * tiles_n)
    rows = min(tiles_m - group * 8, 8)
    within = tile % (8 * tiles_n)
    return group * 8 + within % rows, within // rows


@triton.jit
def _step(
    x, weight, both, row, column, start, m, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DESCRIBED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Add the products of `DEPTH` numbers."""
    if DESCRIBED:
        a = x.load([row * ROWS, start])
        b = weight.load([column * 2 * COLUMNS, start])
        return tl.dot(a, b.T, both)
    else:
        # Rows past the end read the first ones again: what becomes of them is not written.
        rows = ((row * ROWS + tl.arange(0, ROWS)) % m).to(tl.int64)
        columns = ((column * 2 * COLUMNS + tl.arange(0, 2 * COLUMNS)) % (2 * n)).to(tl.int64)
        depth = start + tl.arange(0, DEPTH)
        a_at, b_at = x + rows[:, None] * k + depth[None, :], weight + columns[None, :] * k + depth[:, None]
        if EVEN:
            return tl.dot(tl.load(a_at), tl.load(b_at), both)
        else:
            a = tl.load(a_at, mask=depth[None, :] < k, other=0.0)
            b = tl.load(b_at, mask=depth[:, None] < k, other=0.0)
            return tl.dot(a, b, both)


@triton.jit
def _finish(
    out, both, bias, value_scale, gate_scale, row, column, m, n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Write a tile; in eight bits what is too large becomes the largest number, and NaN stays."""
    rows, columns = row * ROWS + tl.arange(0, ROWS), column * COLUMNS + tl.arange(0, COLUMNS)
    in_m, in_n = rows < m, columns < n
    # Eight columns are what a thread's neighbours hold: so nothing moves between threads.
    value, gate = tl.split(both.reshape(ROWS, COLUMNS // 8, 2, 8).permute(0, 1, 3, 2))
    value, gate = value.reshape(ROWS, COLUMNS), gate.reshape(ROWS, COLUMNS)
    if SCALED:
        value, gate = value * value_scale, gate * gate_scale
    if bias is not None:
        value += tl.load(bias + columns, mask=in_n, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + n + columns, mask=in_n, other=0.0).to(tl.float32)[None, :]
    value *= gelu(gate)
    if DESCRIBED:
        out.store([row * ROWS, column * COLUMNS], value.to(out.dtype))
    else:
        at = rows.to(tl.int64)[:, None] * n + columns[None, :]
        tl.store(out + at, value.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])
