"""The kernels that compute in eight bits, together."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from sdxl_core.ops.fp8 import FP8, Kernels
from sdxl_core.ops.kernels.layer_norms import layer_norm
from sdxl_core.ops.kernels.products import gated_in_eight_bits
from sdxl_core.ops.woven import weave


def linear(x: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A `sdxl_core.ops.fp8.Linear` by cuBLASLt; k and n are multiples of 16."""
    return F.scaled_mm(
        x,
        weight.t(),
        scale,
        ScalingType.TensorWise,
        weight_scale,
        ScalingType.TensorWise,
        output_dtype=dtype,
        use_fast_accum=True,
    )


TRITON = Kernels(partial(layer_norm, dtype=FP8), linear, gated_in_eight_bits, weave)
