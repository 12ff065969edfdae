"""Eight-bit floats for matrix products: a number for each row brings its largest entry to the largest that they know.

The format is e4m3: four bits of exponent and three of mantissa, up to 448, so each number is rounded by up to 1/16 of
itself. A product of normal numbers so rounded is 3.7 % from the exact one, whatever its length. What is written here in
PyTorch runs everywhere, to compare with: `sdxl_core.ops.kernels` has the same for a GPU.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of the format."""

SMALLEST_LARGEST = 1e-30
"""Stands for the largest entry of a row where that is smaller: a row of zeros stays one, and no scale is subnormal."""


class Scaled(NamedTuple):
    """A matrix in eight bits: `values[i, j] * scale[i]`.

    Args:
        values: (m, k) float8_e4m3fn.
        scale: (m,) float32.
    """

    values: Tensor
    scale: Tensor


class Prepare(Protocol):
    """A weight (n, k) in eight bits, in whatever order of the rows the `Linear` beside it takes."""

    def __call__(self, weight: Tensor, *, gated: bool) -> Scaled: ...  # noqa: D102


class Norm(Protocol):
    """The rows of a layer norm of x (m, k), or of x and what it lacks (k,), in eight bits; weight and bias (k,)."""

    def __call__(  # noqa: D102
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, delta_bias: Tensor | None = None
    ) -> Scaled: ...


class Linear(Protocol):
    """A linear layer: x W^T + b, or with a gate (x V^T + b) gelu(x G^T + c), with the exact GELU.

    Args:
        x: (m, k).
        weight: (n, k), or with `gated` (2 n, k), value above gate, made by the `Prepare` beside it.
        bias: (n,) or (2 n,).
        gated: there is a gate.
        dtype: of the result, (m, n).
    """

    def __call__(  # noqa: D102
        self, x: Scaled, weight: Scaled, bias: Tensor | None = None, *, gated: bool = False, dtype: torch.dtype
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One way to compute in eight bits."""

    prepare: Prepare
    norm: Norm
    linear: Linear


def quantise(x: Tensor) -> Scaled:
    """The rows of x (m, k) in eight bits; a row with a NaN or an infinity gives NaN wherever it is multiplied."""
    wide = x.float()
    largest = wide.abs().amax(1, keepdim=True).clamp(min=SMALLEST_LARGEST)
    return Scaled((wide * (LARGEST / largest)).to(FP8), (largest / LARGEST).squeeze(1))


def prepare(weight: Tensor, *, gated: bool) -> Scaled:
    """See `Prepare`; as it is."""
    return quantise(weight)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, delta_bias: Tensor | None = None) -> Scaled:
    """See `Norm`."""
    whole = x.float() if delta_bias is None else x.float() + delta_bias.float()
    return quantise(F.layer_norm(whole, x.shape[1:], weight.float(), bias.float(), eps))


def linear(x: Scaled, weight: Scaled, bias: Tensor | None = None, *, gated: bool = False, dtype: torch.dtype) -> Tensor:
    """See `Linear`."""
    out = (x.values.float() @ weight.values.float().t()) * x.scale[:, None] * weight.scale
    if bias is not None:
        out = out + bias.float()
    if gated:
        value, gate = out.chunk(2, dim=1)
        out = value * F.gelu(gate)
    return out.to(dtype)


WRITTEN_OUT = Kernels(prepare, norm, linear)
