"""Eight-bit floats for matrix products: one power of two brings a whole matrix into the range that they know.

The format is e4m3: four bits of exponent and three of mantissa, up to 448, so a number is rounded by up to 1/16 of
itself, and by at most 2^-10 below 2^-6. A product of normal numbers so rounded is 3.7 % from the exact one, whatever
its length. As the format has an exponent of its own, a scale need not be tight: it is known before the numbers are,
from the weights of the layer that makes them, so that nobody has to look for the largest one. What becomes too large
after all becomes the largest number, and NaN stays.

What is written here in PyTorch runs everywhere, to compare with: `sdxl_core.ops.kernels` has the same for a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of the format."""

USUAL = 1.0
"""Root mean square that is aimed at where no more than that can be known: 448 times as much has room, and half of the
smallest step is a 1000th of it."""


class Norm(Protocol):
    """x + delta (m, k), beside a layer norm of this and of what it lacks, `delta_bias` (k,), in eight bits.

    Weight and bias (k,) are scaled beforehand, see `norm_power`.
    """

    def __call__(  # noqa: D102
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        delta: Tensor | None = None,
        delta_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


class Linear(Protocol):
    """s x (t W)^T in `dtype`, (m, n), of x (m, k) and W (n, k) in eight bits and their scales () in float32."""

    def __call__(  # noqa: D102
        self, x: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, dtype: torch.dtype
    ) -> Tensor: ...


class Gated(Protocol):
    """(s x V^T + b) gelu(t x G^T + c) with the exact GELU, (m, n) in eight bits.

    Args:
        x: (m, k) in eight bits.
        weight: (2 n, k) in eight bits, V above G, in the order that the `arrange` beside it makes.
        bias: (2 n,) b beside c.
        value_scale: s.
        gate_scale: t.
    """

    def __call__(  # noqa: D102
        self, x: Tensor, weight: Tensor, bias: Tensor, value_scale: float, gate_scale: float
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One way to compute in eight bits."""

    norm: Norm
    linear: Linear
    gated: Gated
    arrange: Callable[[Tensor], Tensor]


def power(size: Tensor, limit: float = LARGEST) -> float:
    """The largest power of two that brings a number () to `limit` at most; 1 where it is zero or not finite."""
    number = float(size)
    return 2.0 ** math.floor(math.log2(limit / number)) if 0 < number < math.inf else 1.0


def quantised(x: Tensor, factor: float) -> Tensor:
    """`factor` times x in eight bits."""
    return (x.float() * factor).clamp(-LARGEST, LARGEST).to(FP8)


def weight_power(weight: Tensor) -> float:
    """What a weight is multiplied by: then its largest number is half of the format's at least."""
    return power(weight.abs().amax())


def norm_power(weight: Tensor, bias: Tensor) -> float:
    """What weight and bias (k,) of a layer norm are multiplied by, so that its rows are in range whatever comes.

    Before them a number is at most sqrt(k), as the squares of all k are k together.
    """
    return power((math.sqrt(len(weight)) * weight.float().abs() + bias.float().abs()).amax())


def gate_powers(weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """What each feature (n,) of GEGLU behind a layer norm is multiplied by, so that it is about as large as `USUAL`.

    Its size is estimated, rather too large, as if numbers of the norm had nothing to do with one another.

    Args:
        weight: (2 n, k), value above gate.
        bias: (2 n,).
        norm_weight: (k,).
        norm_bias: (k,).
    """
    wide = weight.float()
    square = wide.square() @ norm_weight.float().square() + (wide @ norm_bias.float() + bias.float()).square()
    value, gate = square.chunk(2)
    powers = (USUAL / (value * gate).sqrt()).log2().floor().exp2()
    return torch.where(powers.isfinite() & (powers > 0), powers, 1.0)


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    delta: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `Norm`."""
    whole = x.float() if delta is None else x.float() + delta.float()
    lacking = 0.0 if delta_bias is None else delta_bias.float()
    normed = F.layer_norm(whole + lacking, x.shape[1:], weight.float(), bias.float(), eps)
    return x if delta is None else whole.to(x.dtype), quantised(normed, 1.0)


def linear(x: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """See `Linear`."""
    return (x.float() @ weight.float().t() * scale * weight_scale).to(dtype)


def gated(x: Tensor, weight: Tensor, bias: Tensor, value_scale: float, gate_scale: float) -> Tensor:
    """See `Gated`."""
    (value, gate), (b, c) = (x.float() @ weight.float().t()).chunk(2, dim=1), bias.float().chunk(2)
    return quantised((value * value_scale + b) * F.gelu(gate * gate_scale + c), 1.0)


WRITTEN_OUT = Kernels(norm, linear, gated, lambda weight: weight)
