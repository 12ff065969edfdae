"""Blurring of feature maps and latents."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.ops.transfer import sent


def blur(x: Tensor, weights: Tensor) -> Tensor:
    """Blur (b, c, h, w) along both sides; the borders mirror.

    Args:
        x: what to blur.
        weights: (2 r + 1,) of the window, in any scale. Along a side shorter than 2 r cells, the middle of the window
            that reaches half of the side.
    """
    weights = sent(weights.float(), x.device)
    for dim in (2, 3):
        reach = min(len(weights) // 2, x.shape[dim] // 2)
        middle = weights[len(weights) // 2 - reach :][: 2 * reach + 1]
        kernel = (middle / middle.sum()).to(x.dtype)
        kernel = kernel[:, None] if dim == 2 else kernel[None, :]
        padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        kernels = kernel.expand(x.shape[1], 1, *kernel.shape)
        x = F.conv2d(F.pad(x, padding, mode="reflect"), kernels, groups=x.shape[1])
    return x


def gaussian(sigma: float, reach: int) -> Tensor:
    """(2 reach + 1,) weights of a Gaussian of standard deviation sigma cells."""
    return torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)


def low_frequencies(x: Tensor) -> Tensor:
    """What is left of (b, c, h, w) after it was halved and doubled again: the lower band of a Laplacian pyramid of two.

    Source: Burt and Adelson 1983, with its binomial window; halved and doubled bilinearly.
    """
    binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    half = [max(1, side // 2) for side in x.shape[2:]]
    small = F.interpolate(blur(x, binomial), half, mode="bilinear", align_corners=False)
    return blur(F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False), binomial)
