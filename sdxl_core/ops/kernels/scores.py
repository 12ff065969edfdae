"""The softmax of attention that is written out as two matrix products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LARGEST = 16384
"""Scores that a program of 512 threads holds at once; longer rows are read twice."""


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The softmax of scale * scores over the last axis, rounded once; costs reading the scores once.

    Args:
        scores: (..., n) float32, contiguous.
        scale: positive.
        dtype: of the weights.

    Returns:
        (..., n) of `dtype`.
    """
    n = scores.shape[-1]
    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    block = min(_LARGEST, triton.next_power_of_2(n))
    with torch.cuda.device_of(scores):
        _softmax[(scores.numel() // n,)](
            *(scores.contiguous(), out, n, scale), ONCE=n <= block, BLOCK=block, num_warps=min(16, max(1, block // 512))
        )
    return out


@triton.jit
def _softmax(scores, out, n, scale, ONCE: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * n
    scores += start
    out += start
    column = tl.arange(0, BLOCK)
    score = tl.load(scores + column, mask=column < n, other=-float("inf")) * scale
    top = tl.max(score, axis=0)
    weight = tl.exp(score - top)
    total = tl.sum(weight, axis=0)
    if ONCE:
        tl.store(out + column, (weight / total).to(out.dtype.element_ty), mask=column < n)
    else:
        for first in range(BLOCK, n, BLOCK):
            score = tl.load(scores + first + column, mask=first + column < n, other=-float("inf")) * scale
            higher = tl.maximum(top, tl.max(score, axis=0))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(score - higher), axis=0)
            top = higher
        for first in range(0, n, BLOCK):
            score = tl.load(scores + first + column, mask=first + column < n, other=-float("inf")) * scale
            weight = tl.exp(score - top) / total
            tl.store(out + first + column, weight.to(out.dtype.element_ty), mask=first + column < n)
