"""Layer norm of rows with the sum before it, in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdxl_core.ops.fp8 import FP8, Scaled
from sdxl_core.ops.kernels.quantise import to_eight_bits


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    delta: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer norm of x + delta + delta_bias, beside that sum; costs one pass over what is given and what is made.

    Args:
        x: (m, c) in float16, bfloat16 or float32, c at most 8192.
        weight: (c,).
        bias: (c,).
        eps: added to the variance.
        delta: (m, c), or None for nothing.
        delta_bias: (c,), or None for nothing.

    Returns:
        The sum, or x itself where there is no `delta`, whatever the bias; and the norm of the sum. Both (m, c).
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _launch_layer_norm(x, weight, bias, eps, delta, delta_bias, out, None), out


def layer_norm_in_eight_bits(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, delta_bias: Tensor | None = None
) -> Scaled:
    """Layer norm of x (m, c) + delta_bias as rows of eight-bit floats, a `sdxl_core.ops.fp8.Norm`."""
    out = torch.empty(x.shape, dtype=FP8, device=x.device)
    scale = torch.empty(len(x), dtype=torch.float32, device=x.device)
    _launch_layer_norm(x, weight, bias, eps, None, delta_bias, out, scale)
    return Scaled(out, scale)


def _launch_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    delta: Tensor | None,
    delta_bias: Tensor | None,
    out: Tensor,
    scale: Tensor | None,
) -> Tensor:
    x = x.contiguous()
    m, c = x.shape
    summed = x if delta is None else torch.empty_like(x)
    if delta is not None:
        delta = delta.contiguous()
    columns = triton.next_power_of_2(c)
    given = {"ADDED": delta is not None, "BIASED": delta_bias is not None, "SCALED": scale is not None}
    with torch.cuda.device_of(x):
        _layer_norm[(m,)](
            *(x, delta, delta_bias, weight, bias, summed, out, scale, c, eps),
            **given,
            COLUMNS=columns,
            num_warps=min(16, max(1, columns // 512)),
        )
    return summed


@triton.jit
def _layer_norm(
    x,
    delta,
    delta_bias,
    weight,
    bias,
    summed,
    out,
    scale,
    c,
    eps,
    ADDED: tl.constexpr,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    inside = column < c
    place = tl.program_id(0).to(tl.int64) * c + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(delta + place, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(delta_bias + column, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        tl.store(summed + place, value.to(summed.dtype.element_ty), mask=inside)
    mean = tl.sum(value, axis=0) / c
    distance = tl.where(inside, value - mean, 0.0)
    deviation = tl.sqrt(tl.sum(distance * distance, axis=0) / c + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    summand = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normed = distance / deviation * factor + summand
    if SCALED:
        normed, of_row = to_eight_bits(normed)
        tl.store(scale + tl.program_id(0), of_row)
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)
