"""The gate of the feed-forward layers in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdxl_core.ops.kernels.activations import gelu

_COLUMNS, _ROWS = 512, 8


def geglu(h: Tensor, bias: Tensor | None) -> Tensor:
    """A value times the exact GELU of its gate (Shazeer 2020); costs reading `h` once.

    Args:
        h: (m, 2 n) value beside gate, in float16, bfloat16 or float32.
        bias: (2 n,), added to `h` first, or None.

    Returns:
        (m, n) of h's dtype.
    """
    h = h.contiguous()
    m, n = h.shape[0], h.shape[1] // 2
    out = torch.empty(m, n, dtype=h.dtype, device=h.device)
    columns = min(_COLUMNS, triton.next_power_of_2(n))
    grid = (triton.cdiv(n, columns) * triton.cdiv(m, _ROWS),)
    with torch.cuda.device_of(h):
        _geglu[grid](
            h,
            bias,
            out,
            m,
            n,
            BIASED=bias is not None,
            EXACT=h.dtype is torch.float32,
            ROWS=_ROWS,
            COLUMNS=columns,
            num_warps=4,
        )
    return out


@triton.jit
def _geglu(
    h,
    bias,
    out,
    m,
    n,
    BIASED: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    blocks = tl.cdiv(n, COLUMNS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    seen = (row < m)[:, None] & (column < n)[None, :]
    start = row.to(tl.int64)[:, None] * n
    value = tl.load(h + 2 * start + column[None, :], mask=seen, other=0.0).to(tl.float32)
    gate = tl.load(h + 2 * start + n + column[None, :], mask=seen, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + n + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    if EXACT:
        value *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        value *= gelu(gate)
    tl.store(out + start + column[None, :], value.to(out.dtype.element_ty), mask=seen)
