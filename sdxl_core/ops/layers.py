"""Layers that the UNet and the autoencoder share."""

from math import gcd

from torch import nn


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with SDXL's 32 groups.

    A small model may have widths that 32 does not divide (16, 48); it gets the most groups that divide both,
    which for every published width is 32.
    """
    return nn.GroupNorm(gcd(32, channels), channels, eps=eps)
