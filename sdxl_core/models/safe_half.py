"""The first stage in float16 without overflow: maps that grow large are carried small, and the function stays the same.

Activations of the published weights pass 65504. But every map between convolutions is read by group norms, which take
away its size, and by convolutions that hand it on: the shortcuts and the changes of resolution. So all of them can be
carried times one factor. What makes such a map of a normalised one has its weights and biases times the factor, what
hands one on its biases alone, and the norms their epsilon times the square. A power of two rounds no number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.models.autoencoder import AutoencoderKL

FACTOR = 2.0**-6
"""Maps up to 4.2e6 fit into float16; 3e5 was seen in the published decoder.

Below, the smallest normal number 6.1e-5 stands for 0.004 and values under it err by 2e-6 at the most: less than float16
rounds a map by whose deviation is above 0.008, and the norms read nothing finer. Weights too are carried: those of a
layer of 4608 inputs deviate by about 0.015, here 2.3e-4, of which the numbers below the normal ones err by 3e-8.
"""

_MAKE = {"conv_in", "conv1", "conv2", "proj_out"}
"""Layers that make a map which is carried of one which is not."""

_HAND_ON = {"nin_shortcut", "conv"}
"""Layers that make a map which is carried of another; `conv` changes the resolution."""


class WideGroupNorm(nn.GroupNorm):
    """A group norm that computes in float32 at the least, whatever its map is stored in.

    PyTorch's on CUDA rounds epsilon, means and deviations to the map's dtype: in float16 a small epsilon becomes zero.

    Args:
        plain: the layer, whose parameters it shares.
        eps: in place of the layer's.
    """

    def __init__(self, plain: nn.GroupNorm, eps: float) -> None:
        with torch.device("meta"):
            super().__init__(plain.num_groups, plain.num_channels, eps, affine=False)
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = F.group_norm(x.to(wide), self.num_groups, self.weight.to(wide), self.bias.to(wide), self.eps)
        return normed.to(x.dtype)


@torch.no_grad()
def carry_small(model: AutoencoderKL, factor: float = FACTOR) -> None:
    """Have all maps between the convolutions carried times `factor`; the function is the same to rounding.

    Args:
        model: as loaded; its parameters change in place.
        factor: a power of two.
    """
    for half in (model.encoder, model.decoder):
        for parent in list(half.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.GroupNorm):
                    setattr(parent, name, WideGroupNorm(layer, layer.eps * factor**2))
                elif isinstance(layer, nn.Conv2d):
                    if name in _MAKE:
                        layer.weight.mul_(factor)
                    if name in _MAKE | _HAND_ON and layer.bias is not None:
                        layer.bias.mul_(factor)
