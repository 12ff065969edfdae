"""The layers that several networks share."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from sdxl_core.ops.layers import group_norm, sinusoid, zeroed


@pytest.mark.parametrize("features", [2, 16, 256, 320])
def test_sinusoid_equals_diffusers(features: int) -> None:
    values = torch.tensor([0.0, 1.0, 2.5, 6.0, 999.0, 1024.0])
    theirs = get_timestep_embedding(values, features, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(sinusoid(values, features), theirs)


def test_sinusoid_is_cosines_then_sines_of_falling_frequencies() -> None:
    out = sinusoid(torch.tensor([3.0]), 4)
    assert out[0].tolist() == pytest.approx([math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)])


def test_sinusoid_is_float32_whatever_comes_in() -> None:
    assert sinusoid(torch.tensor([7], dtype=torch.int64), 8).dtype == torch.float32
    assert torch.equal(sinusoid(torch.tensor([7], dtype=torch.int64), 8), sinusoid(torch.tensor([7.0]), 8))


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (32, 32), (16, 16), (48, 16), (40, 8)])
def test_group_norm_has_as_many_groups_as_divide_its_width(channels: int, groups: int) -> None:
    assert group_norm(channels, 1e-6).num_groups == groups


def test_group_norm_takes_another_number_of_groups() -> None:
    assert group_norm(64, 1e-6, groups=8).num_groups == 8


def test_zeroed_leaves_no_weight() -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert zeroed(layer) is layer
    assert [p.count_nonzero().item() for p in layer.parameters()] == [0, 0]
