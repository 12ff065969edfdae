"""What guidance does inside the network, each function by itself."""

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu
from scipy import ndimage
from support_networks import BASE, randn

from sdxl_core.diffusion.blur import blur, gaussian
from sdxl_core.diffusion.touches import (
    BlurredQueries,
    WatchedAttention,
    degraded,
    free_u,
    own_values,
    scaled_low_frequencies,
)
from sdxl_core.guider_config import FreeUConfig, SagConfig
from sdxl_core.ops.attention import sdpa

SIZE = (6, 10)
Q, K, V = (randn(2, 3, SIZE[0] * SIZE[1], 8, seed=seed) for seed in range(3))


def test_a_position_that_attends_to_itself_takes_its_own_value() -> None:
    assert torch.equal(own_values(sdpa, Q, K, V, size=SIZE), V)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_a_blur_is_scipys(sigma: float) -> None:
    x, reach = randn(2, 3, 12, 9).double(), 4
    wanted = x.numpy()
    for axis in (2, 3):
        weights = gaussian(sigma, reach).double().numpy()
        wanted = ndimage.correlate1d(wanted, weights / weights.sum(), axis=axis, mode="mirror")
    np.testing.assert_allclose(blur(x, gaussian(sigma, reach)).numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sides", [(1, 1), (1, 8), (2, 3), (4, 5)])
def test_a_blur_keeps_a_flat_map_however_small(sides: tuple[int, int]) -> None:
    flat = torch.full((1, 2, *sides), 0.7)
    torch.testing.assert_close(blur(flat, gaussian(3.0, 9)), flat)


def test_infinitely_blurred_queries_are_all_the_mean() -> None:
    out = BlurredQueries(None)(sdpa, Q, K, V, size=SIZE)
    wanted = sdpa(Q.mean(dim=2, keepdim=True), K, V)
    torch.testing.assert_close(out, wanted.expand_as(out), rtol=1e-5, atol=1e-6)


def test_queries_are_blurred_over_the_map_as_it_is_and_not_as_a_square() -> None:
    out = BlurredQueries(1.5)(sdpa, Q, K, V, size=SIZE)
    grid = Q.double().numpy().reshape(2, 3, *SIZE, 8)
    for axis in (2, 3):
        reach = min(4, SIZE[axis - 2] // 2)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / 1.5) ** 2)
        grid = ndimage.correlate1d(grid, weights / weights.sum(), axis=axis, mode="mirror")
    wanted = sdpa(torch.from_numpy(grid).reshape(Q.shape), K.double(), V.double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    other = BlurredQueries(1.5)(sdpa, Q, K, V, size=(SIZE[1], SIZE[0]))
    assert (out - other).abs().max() > 1e-3


def test_a_blur_far_wider_than_the_map_makes_no_window_wider_than_the_map() -> None:
    out = BlurredQueries(1e9)(sdpa, Q, K, V, size=SIZE)  # a window of six times that would take 24 GB
    torch.testing.assert_close(out, BlurredQueries(1e4)(sdpa, Q, K, V, size=SIZE))


def test_a_blur_of_nothing_is_the_kernel() -> None:
    torch.testing.assert_close(BlurredQueries(0.01)(sdpa, Q, K, V, size=SIZE), sdpa(Q, K, V))


def test_watched_attention_is_the_kernels_and_sums_to_one_each() -> None:
    watch = WatchedAttention(rows=1)
    assert torch.equal(watch(sdpa, Q, K, V, size=SIZE), sdpa(Q, K, V))
    assert watch.attended is not None
    maps = torch.softmax(Q[:1] @ K[:1].transpose(2, 3) / 8**0.5, dim=-1)
    wanted = maps.mean(dim=1).sum(dim=1).reshape(1, 1, *SIZE)
    torch.testing.assert_close(watch.attended, wanted, rtol=1e-5, atol=1e-6)
    assert abs(float(watch.attended.mean()) - 1) < 1e-5
    first = watch.attended
    watch(sdpa, K, Q, V, size=SIZE)
    assert watch.attended is first  # the first layer's alone


def test_only_what_was_looked_at_is_blurred() -> None:
    x0 = randn(1, 4, 12, 20)
    attended = torch.zeros(1, 1, *SIZE)
    attended[:, :, :3] = 2.0
    out = degraded(x0, attended, SagConfig())
    assert torch.equal(out[:, :, 6:], x0[:, :, 6:])
    torch.testing.assert_close(out[:, :, :6], blur(x0, gaussian(2.0, 4))[:, :, :6])


@pytest.mark.parametrize("sides", [(8, 8), (5, 7), (6, 1), (2, 9)])
def test_low_frequencies_are_those_of_diffusers_filter(sides: tuple[int, int]) -> None:
    skip, h = randn(2, 6, *sides), randn(2, 8, *sides, seed=1)
    b1, s1 = 1.3, 0.2
    theirs_h, theirs_skip = apply_freeu(0, h.clone(), skip, s1=s1, s2=1.0, b1=b1, b2=1.0)
    torch.testing.assert_close(scaled_low_frequencies(skip, s1), theirs_skip, rtol=1e-5, atol=1e-6)
    network = BASE.model_copy(update={"model_channels": 2, "channel_mult": (1, 2, 4)})
    ours_h, ours_skip = free_u(FreeUConfig(version=1, b1=b1, s1=s1), network)(h, skip)
    torch.testing.assert_close(ours_h, theirs_h)
    torch.testing.assert_close(ours_skip, theirs_skip, rtol=1e-5, atol=1e-6)


def test_a_scale_of_one_keeps_the_skip() -> None:
    x = randn(1, 3, 7, 4)
    torch.testing.assert_close(scaled_low_frequencies(x, 1.0), x, rtol=1e-5, atol=1e-6)
    assert scaled_low_frequencies(x.bfloat16(), 0.5).dtype == torch.bfloat16


def test_the_second_version_strengthens_most_where_the_mean_is_highest() -> None:
    network = BASE.model_copy(update={"model_channels": 2, "channel_mult": (1, 2, 4)})
    h, skip = randn(2, 8, 3, 5), randn(2, 6, 3, 5, seed=1)
    out, _ = free_u(FreeUConfig(b1=1.5), network)(h, skip)
    assert torch.equal(out[:, 4:], h[:, 4:])
    factor = (out[:, :4] / h[:, :4]).double()
    mean = h.double().mean(dim=1, keepdim=True)
    for row in range(2):
        low, high = mean[row].min(), mean[row].max()
        wanted = 1 + 0.5 * (mean[row] - low) / (high - low)
        torch.testing.assert_close(factor[row], wanted.expand(4, 3, 5), rtol=1e-4, atol=1e-4)
    flat = torch.ones(1, 8, 3, 5)
    assert free_u(FreeUConfig(), network)(flat, skip)[0].isfinite().all()


@pytest.mark.parametrize(("channels", "factors"), [(8, (1.3, 0.9)), (4, (1.4, 0.2)), (2, None)])
def test_the_widest_two_levels_are_changed(channels: int, factors: tuple[float, float] | None) -> None:
    network = BASE.model_copy(update={"model_channels": 2, "channel_mult": (1, 2, 4)})
    h, skip = randn(1, channels, 4, 4), randn(1, 3, 4, 4, seed=1)
    out, skipped = free_u(FreeUConfig(version=1), network)(h, skip)
    if factors is None:
        assert torch.equal(out, h)
        assert torch.equal(skipped, skip)
    else:
        torch.testing.assert_close(out[:, : channels // 2], factors[0] * h[:, : channels // 2])
        torch.testing.assert_close(skipped, scaled_low_frequencies(skip, factors[1]))
