"""Layer norm of rows with the sum before it, in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEAD = 1024
"""Columns of the first part of a row for each warp: up to 2048 one does it alone, and waits for no other."""

_PROGRAMS = 8192
"""At most so many, each of which has several rows where there are more: to start a program takes time too."""


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    delta: Tensor | None = None,
    delta_bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer norm of x + delta + delta_bias, beside x + delta; costs one pass over what is given and what is made.

    Args:
        x: (m, c) in float16, bfloat16 or float32, c from 2 to 8192.
        weight: (c,).
        bias: (c,).
        eps: added to the variance.
        delta: (m, c), or None for nothing.
        delta_bias: (c,), or None for nothing.
        dtype: of the norm, None for that of x. In float8_e4m3fn what is too large becomes the largest number.

    Returns:
        x + delta, or x itself where there is no `delta`; and the norm. Both (m, c).
    """
    x = x.contiguous()
    m, c = x.shape
    out = torch.empty(m, c, dtype=dtype or x.dtype, device=x.device)
    summed = x if delta is None else torch.empty_like(x)
    if delta is not None:
        delta = delta.contiguous()
    head = triton.next_power_of_2(c) // 2
    with torch.cuda.device_of(x):
        _layer_norm[(min(m, _PROGRAMS),)](
            *(x, delta, delta_bias, weight, bias, summed, out, m, c, eps),
            HEAD=head,
            TAIL=triton.next_power_of_2(c - head),
            num_warps=max(1, head // _HEAD),
        )
    return summed, out


@triton.jit(do_not_specialize=["m"])
def _layer_norm(
    x, delta, delta_bias, weight, bias, summed, out, m, c, eps, HEAD: tl.constexpr, TAIL: tl.constexpr
):  # fmt: skip
    """Rows in two parts, each as wide as a power of two: one such part for 1280 columns would be 2048 wide."""
    a_at, b_at = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    start = tl.program_id(0).to(tl.int64) * c
    for _ in range(tl.program_id(0), m, tl.num_programs(0)):
        a = _summed(x, delta, delta_bias, summed, start, a_at, c)
        b = _summed(x, delta, delta_bias, summed, start, b_at, c)
        mean = (tl.sum(a, axis=0) + tl.sum(b, axis=0)) / c
        a -= mean
        b = tl.where(b_at < c, b - mean, 0.0)
        factor = 1.0 / tl.sqrt((tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / c + eps)
        _write(out, a * factor, weight, bias, start, a_at, c)
        _write(out, b * factor, weight, bias, start, b_at, c)
        start += tl.num_programs(0).to(tl.int64) * c


@triton.jit
def _summed(x, delta, delta_bias, summed, start, column, c):
    value = tl.load(x + start + column, mask=column < c, other=0.0).to(tl.float32)
    if delta is not None:
        value += tl.load(delta + start + column, mask=column < c, other=0.0).to(tl.float32)
        tl.store(summed + start + column, value.to(summed.dtype.element_ty), mask=column < c)
    if delta_bias is not None:
        value += tl.load(delta_bias + column, mask=column < c, other=0.0).to(tl.float32)
    return value


@triton.jit
def _write(out, value, weight, bias, start, column, c):
    factor = tl.load(weight + column, mask=column < c, other=0.0).to(tl.float32)
    summand = tl.load(bias + column, mask=column < c, other=0.0).to(tl.float32)
    tl.store(out + start + column, (value * factor + summand).to(out.dtype.element_ty), mask=column < c)
