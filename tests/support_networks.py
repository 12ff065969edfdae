"""Small networks of the published architectures, with random weights."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from sdxl_core.config import FirstStageConfig, NetworkConfig

Network = TypeVar("Network", bound=nn.Module)

OUTDIM = 16
"""Features of one size or score in the vectors of these configurations."""

BASE = NetworkConfig(
    model_channels=32,
    channel_mult=(1, 2, 4),
    attention_resolutions=(4, 2),
    transformer_depth=(1, 2, 3),
    num_head_channels=16,
    context_dim=48,
    adm_in_channels=40 + 6 * OUTDIM,
)

REFINER = NetworkConfig(
    model_channels=32,
    channel_mult=(1, 2, 4, 4),
    attention_resolutions=(4, 2),
    transformer_depth=(2, 2, 2, 2),
    num_head_channels=8,
    context_dim=40,
    adm_in_channels=40 + 5 * OUTDIM,
)

FIRST_STAGE = FirstStageConfig(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=2)


def randomized(network: Network, seed: int = 0) -> Network:
    """The same network in eval mode with weights that keep activations near unit size, zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
        else:
            values /= parameter[0].numel() ** 0.5
        parameter.data.copy_(values)
    return network.eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    """A float32 standard normal draw of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute value of the reference."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
