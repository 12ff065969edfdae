"""Numbers (sizes, crop, score, timestep) as sinusoidal features."""

import math

import torch
from torch import Tensor, nn


def sinusoid(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Cosine and sine of each number at dim // 2 frequencies, falling geometrically from 1 towards 1 / max_period.

    Args:
        t: (n,) numbers of any dtype; computed in float32.
        dim: features; an odd dim ends in a zero.
        max_period: the longest period, divided by 2 pi.

    Returns:
        (n, dim) float32: cosines first, then sines.

    Source: Vaswani et al. 2017, section 3.5, in the order of the published SDXL weights.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.to(torch.float32)[:, None] * frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(features, (0, dim % 2))


class ConcatTimestepEmbedderND(nn.Module):
    """Each number of a tuple through the sinusoid, features joined in the order of the tuple; has no weights.

    Args:
        outdim: features for each number.

    Source: Podell et al. 2023, section 2.2.
    """

    def __init__(self, outdim: int = 256) -> None:
        super().__init__()
        self.outdim = outdim

    def forward(self, numbers: Tensor) -> Tensor:
        """(b, d) numbers to (b, d * outdim) float32 features."""
        return sinusoid(numbers.reshape(-1), self.outdim).reshape(len(numbers), -1)
