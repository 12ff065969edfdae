"""Eight-bit floats for matrix products: a number for each row brings its largest entry to the largest that they know.

The format is e4m3: four bits of exponent and three of mantissa, up to 448, so each number is rounded by up to 1/16 of
itself. A product of normal numbers so rounded is 3.7 % from the exact one, whatever its length. What is written here in
PyTorch runs everywhere; `sdxl_core.ops.kernels` has the same for a GPU.
"""

from typing import NamedTuple

import torch
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


def quantised(x: Tensor) -> Scaled:
    """The rows of x (m, k) in eight bits; a row with a NaN or an infinity gives NaN wherever it is multiplied."""
    wide = x.float()
    largest = wide.abs().amax(1, keepdim=True).clamp(min=SMALLEST_LARGEST)
    return Scaled((wide * (LARGEST / largest)).to(FP8), (largest / LARGEST).squeeze(1))


def multiplied(x: Scaled, weight: Scaled, bias: Tensor | None = None) -> Tensor:
    """A linear layer of x (m, k) by a weight (n, k), a bias (n,) added: (m, n) float32. To compare with, not fast."""
    out = (x.values.float() @ weight.values.float().t()) * x.scale[:, None] * weight.scale
    return out if bias is None else out + bias.float()
