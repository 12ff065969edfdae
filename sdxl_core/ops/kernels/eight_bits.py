"""The kernels that compute in eight bits, together."""

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


TRITON = Kernels(prepare, layer_norm_in_eight_bits, scaled_linear)
