"""The kernels that compute in eight bits, together."""

import torch
from torch import Tensor

from sdxl_core.ops.fp8 import Kernels, Scaled
from sdxl_core.ops.kernels.layer_norms import layer_norm_in_eight_bits
from sdxl_core.ops.kernels.products import scaled_linear
from sdxl_core.ops.kernels.quantise import quantise
from sdxl_core.ops.woven import weave


def prepare(weight: Tensor, *, gated: bool) -> Scaled:
    """A `sdxl_core.ops.fp8.Prepare`: gated weights are woven, their scales are not."""
    scaled = quantise(weight)
    return Scaled(weave(scaled.values), scaled.scale) if gated else scaled


def linear(
    x: Scaled,
    weight: Scaled,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype,
) -> Tensor:
    """A `sdxl_core.ops.fp8.Linear`."""
    return scaled_linear(x, weight, bias, residual=residual, gated=gated, woven=gated, dtype=dtype)


TRITON = Kernels(quantise, prepare, layer_norm_in_eight_bits, linear)
