"""Layers that several networks share."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)

Replacement = Callable[[nn.Module], nn.Module | None]
"""What takes the place of a layer; None: it stays, and its own layers are looked at."""


def group_norm(channels: int, eps: float, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm with SDXL's 32 groups, or another number for a small model.

    Where `groups` does not divide a width (16, 48), as many groups as divide both take its place; that never
    happens at a published width.
    """
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps)


def zeroed(layer: Layer) -> Layer:
    """The same layer with all weights zero: the last one of a residual branch, so that training starts at identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def replace_layers(module: nn.Module, replacement: Replacement) -> None:
    """Put others in the place of the layers inside a module."""
    for name, child in list(module.named_children()):
        other = replacement(child)
        if other is None:
            replace_layers(child, replacement)
        else:
            setattr(module, name, other)


def wide_bias(layer: nn.Module) -> Tensor:
    """A layer's bias in float32 at least, so that biases can be added without rounding each."""
    assert isinstance(layer.bias, Tensor)
    bias = layer.bias.detach()
    return bias.to(torch.promote_types(bias.dtype, torch.float32))


def as_linear(layer: nn.Module) -> nn.Linear:
    """A layer that is held as any and is a linear one."""
    assert isinstance(layer, nn.Linear)
    return layer


def sinusoid(values: Tensor, features: int, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of each value at geometrically falling frequencies (Vaswani et al. 2017, section 3.5).

    Args:
        values: (b,), any real numbers; a fraction is not rounded.
        features: outputs for each value; an odd number ends in a zero.
        max_period: radians per 2 pi of the slowest frequency, reached in the limit.

    Returns:
        (b, features) float32, whatever the dtype of `values`: half precision cannot tell timestep 999 from 998.5.
    """
    half = features // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    # Multiplied, then divided: the order in which the published models had their frequencies rounded.
    frequencies = torch.exp(-math.log(max_period) * steps / half)
    angles = values.float()[:, None] * frequencies
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, features % 2))
