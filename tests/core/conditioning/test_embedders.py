import math

import pytest
import torch

from sdxl_core.conditioning.embedders import ConcatTimestepEmbedderND
from sdxl_core.ops.layers import sinusoid


@pytest.mark.parametrize("dim", [256, 320, 7])
def test_equals_the_sinusoid_of_diffusers(dim: int) -> None:
    from diffusers.models.embeddings import Timesteps

    t = torch.tensor([0.0, 1.0, 6.0, 999.0, 1024.0, 4096.0])
    theirs = Timesteps(dim, flip_sin_to_cos=True, downscale_freq_shift=0)(t)
    torch.testing.assert_close(sinusoid(t, dim), theirs, rtol=0, atol=1e-6)


def test_formula() -> None:
    row = sinusoid(torch.tensor([3.0]), 4)[0].tolist()
    expected = [math.cos(3), math.cos(3 * 10000**-0.5), math.sin(3), math.sin(3 * 10000**-0.5)]
    assert row == pytest.approx(expected, abs=1e-6)


def test_an_odd_width_ends_in_zero() -> None:
    even, odd = sinusoid(torch.tensor([5.0]), 6), sinusoid(torch.tensor([5.0]), 7)
    assert torch.equal(odd[:, :6], even)
    assert odd[0, 6] == 0


def test_half_precision_numbers_are_computed_in_float32() -> None:
    features = sinusoid(torch.tensor([1024], dtype=torch.float16), 256)
    assert features.dtype == torch.float32
    assert torch.equal(features, sinusoid(torch.tensor([1024]), 256))


def test_the_features_of_each_number_lie_side_by_side() -> None:
    embedder = ConcatTimestepEmbedderND(8)
    features = embedder(torch.tensor([[1024, 768], [0, 5]]))
    assert features.shape == (2, 16)
    assert torch.equal(features[0, :8], sinusoid(torch.tensor([1024]), 8)[0])
    assert torch.equal(features[0, 8:], sinusoid(torch.tensor([768]), 8)[0])
    assert torch.equal(features[1, 8:], sinusoid(torch.tensor([5]), 8)[0])
    assert not embedder.state_dict()
