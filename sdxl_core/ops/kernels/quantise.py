"""Rows of a matrix in eight bits, as `sdxl_core.ops.fp8` has it, in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdxl_core.ops.fp8 import FP8, LARGEST, SMALLEST_LARGEST, Scaled


def quantise(x: Tensor) -> Scaled:
    """The rows of x (m, k), k at most 16384, in eight bits; costs reading x once and writing half as much."""
    x = x.contiguous()
    m, k = x.shape
    values = torch.empty(m, k, dtype=FP8, device=x.device)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    columns = triton.next_power_of_2(k)
    with torch.cuda.device_of(x):
        _quantise[(m,)](x, values, scale, k, COLUMNS=columns, num_warps=min(16, max(1, columns // 512)))
    return Scaled(values, scale)


_LARGEST, _SMALLEST_LARGEST = tl.constexpr(LARGEST), tl.constexpr(SMALLEST_LARGEST)


@triton.jit
def to_eight_bits(row):
    """A row (columns,) of float32, and zeros where it has no entries: in eight bits, and its scale."""
    largest = tl.maximum(tl.max(tl.abs(row), axis=0), _SMALLEST_LARGEST)
    return (row * (_LARGEST / largest)).to(tl.float8e4nv), largest / _LARGEST


@triton.jit
def _quantise(x, values, scale, k, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    place = tl.program_id(0).to(tl.int64) * k + column
    row = tl.load(x + place, mask=column < k, other=0.0).to(tl.float32)
    rounded, of_row = to_eight_bits(row)
    tl.store(values + place, rounded, mask=column < k)
    tl.store(scale + tl.program_id(0), of_row)
