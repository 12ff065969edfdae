import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.diffusion.noise import BrownianPath, PictureNoise, Stream, pure_noise
from sdxl_core.diffusion.philox import CudaNoise

SHAPE = (4, 16, 24)
LEVELS = st.floats(0.002, 200.0)


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("shape", [SHAPE, (4, 1, 1), (4, 3, 5)])
def test_first_draw_is_what_diffusers_draws_on_the_cpu(seed: int, shape: tuple[int, int, int]) -> None:
    draw = PictureNoise([seed], shape)()
    assert torch.equal(draw, randn_tensor((1, *shape), generator=torch.Generator().manual_seed(seed)))
    assert draw.dtype == torch.float32


def test_a_batch_is_what_diffusers_draws_for_a_list_of_generators() -> None:
    seeds = [3, 4, 5]
    noise = PictureNoise(seeds, SHAPE)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    for _ in range(3):
        assert torch.equal(noise(), randn_tensor((3, *SHAPE), generator=generators))


def test_every_draw_of_a_picture_is_the_same_alone_and_in_a_batch() -> None:
    together, alone = PictureNoise([7, 8], SHAPE), PictureNoise([8], SHAPE)
    for _ in range(3):
        assert torch.equal(together()[1:], alone())


def test_draws_differ_from_each_other_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    noise = PictureNoise([0, 1], SHAPE)
    first, second = noise(), noise()
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.get_rng_state())


def test_start_is_the_first_draw_scaled_for_the_highest_level() -> None:
    sigma = 14.614641189575195
    start = PictureNoise([11], SHAPE).start(sigma)
    torch.testing.assert_close(start, PictureNoise([11], SHAPE)() * math.sqrt(1 + sigma**2))


@pytest.mark.parametrize("shape", [SHAPE, (4, 3, 5)], ids=["even", "odd"])
def test_rows_of_one_stream_are_what_diffusers_draws_for_one_generator(shape: tuple[int, int, int]) -> None:
    together = PictureNoise([Stream(3, row, 3) for row in range(3)], shape)
    alone = PictureNoise([Stream(3, 1, 3)], shape)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        drawn = randn_tensor((3, *shape), generator=generator)
        assert torch.equal(together(), drawn)
        assert torch.equal(alone(), drawn[1:2])


def test_rows_of_one_stream_have_paths_of_their_own() -> None:
    noise = PictureNoise([Stream(3, 0, 2), Stream(3, 1, 2)], SHAPE)
    first, second = noise.between(2.0, 1.0)
    assert torch.equal(first, PictureNoise([3], SHAPE).between(2.0, 1.0)[0])
    assert not torch.equal(first, second)


def test_cuda_noise_has_the_published_numbers() -> None:
    published = """-.92466259 -.42534415 -2.6438457 .14518388 -.12086647 -.57972564 -.62285122 -.32838709
        -1.07454231 -.36314407 -1.67105067 2.26550497"""
    drawn = CudaNoise(0)((3, 4))
    assert drawn.dtype == np.float32
    assert drawn.flatten() == pytest.approx([float(number) for number in published.split()], rel=1e-6, abs=1e-6)


def test_cuda_noise_is_normal_and_never_repeats() -> None:
    noise = PictureNoise([Stream(7, noise="cuda"), Stream(2**64 - 1, noise="cuda")], (4, 64, 64))
    draws = [noise(), noise()]
    flat = torch.stack(draws).flatten(2).flatten(0, 1)  # 4 x 16384
    # Standard errors of 4 independent rows: mean 1/128, variance sqrt(2)/128, correlation 1/128; 4.5 of them.
    assert float(flat.mean(dim=1).abs().max()) < 4.5 / 128
    assert float((flat.var(dim=1) - 1).abs().max()) < 4.5 * math.sqrt(2) / 128
    assert float((torch.corrcoef(flat) - torch.eye(4)).abs().max()) < 4.5 / 128


@pytest.mark.parametrize(
    ("scale", "highest", "factor"),
    [
        ("root", math.inf, math.sqrt(5)),
        ("sigma", 2.0, 2.0),
        ("root_at_top", 2.0, math.sqrt(5)),
        ("root_at_top", 2.00001, math.sqrt(5)),
        ("root_at_top", 2.1, 2.0),
        ("root_at_top", 1.9, math.sqrt(5)),
    ],
)
def test_a_start_is_as_strong_as_its_convention_says(scale: str, highest: float, factor: float) -> None:
    eps = PictureNoise([11], SHAPE)()
    torch.testing.assert_close(pure_noise(eps, 2.0, scale, highest), eps * factor)  # type: ignore[arg-type]


@given(st.lists(LEVELS, min_size=3, max_size=3, unique=True))
def test_neighbouring_increments_of_a_path_add_up(levels: list[float]) -> None:
    high, middle, low = sorted(levels, reverse=True)
    path = BrownianPath(5, (4, 4, 4))
    first, second = (path.deviation(*ends) * path.between(*ends) for ends in ((high, middle), (middle, low)))
    if high > 1.0001 * middle > 1.0002 * low:  # apart on the grid
        sum_of_both = (first + second) / path.deviation(high, low)
        torch.testing.assert_close(sum_of_both, path.between(high, low), rtol=1e-5, atol=1e-5)


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + sigma**2)


def test_the_axis_of_a_path_is_alpha_bar() -> None:
    path = BrownianPath(0, SHAPE)
    assert path.deviation(16.0, 0.25) == pytest.approx(math.sqrt(alpha_bar(0.25) - alpha_bar(16.0)))
    elapsed = alpha_bar(0.9) - alpha_bar(1.0)
    assert path.deviation(1.0, 0.9) == pytest.approx(math.sqrt(elapsed), rel=1e-4)  # the grid is 1e-5


def test_exact_steps_for_data_of_unit_variance_come_to_one_picture_whatever_the_steps() -> None:
    start = PictureNoise([1], SHAPE).start(16.0)[0]
    ends = []
    for n in (1, 4, 64):  # levels are on the path's grid
        path, x = BrownianPath(1, SHAPE), start
        levels = [16.0 * 2 ** (-8 * i / n) for i in range(n + 1)]
        for sigma, sigma_next in pairwise(levels):
            kept = alpha_bar(sigma) / alpha_bar(sigma_next)  # mean and variance of x_next given x, by Bayes' rule
            spread = math.sqrt((1 - kept) / alpha_bar(sigma_next))
            x = kept * x + spread * path.between(sigma, sigma_next)
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-5, atol=1e-5)


# Each estimate below is from 65536 values and may be 4.5 standard errors off: of the comparisons together a right path
# fails one for at most one seed in 8000; the seed is fixed.
VALUES = (4, 128, 128)
MANY = math.prod(VALUES)


@pytest.mark.parametrize(("sigma", "sigma_next"), [(14.6, 8.3), (9.0, 8.9), (80.0, 0.03), (0.3, 0.299)])
def test_an_increment_is_standard_normal(sigma: float, sigma_next: float) -> None:
    draw = BrownianPath(11, VALUES).between(sigma, sigma_next).double()
    assert draw.mean().abs() < 4.5 / math.sqrt(MANY)
    assert (draw.square().mean() - 1).abs() < 4.5 * math.sqrt(2 / MANY)
    assert (draw.pow(4).mean() - 3).abs() < 4.5 * math.sqrt(96 / MANY)


def test_increments_correlate_by_the_share_of_the_axis_that_they_have_in_common() -> None:
    path = BrownianPath(11, VALUES)
    ends = [(9.0, 8.0), (8.0, 3.1), (3.1, 0.4)]
    apart = [path.between(*pair).double().flatten() for pair in ends]
    error = 4.5 / math.sqrt(MANY)
    for i in range(3):
        assert abs(float(apart[i] @ apart[i - 1]) / MANY) < error
    shared = path.deviation(9.0, 8.0) / path.deviation(9.0, 3.1)
    assert float(apart[0] @ path.between(9.0, 3.1).double().flatten()) / MANY == pytest.approx(shared, abs=error)


def test_a_path_is_the_same_in_whatever_order_it_is_asked_for() -> None:
    ends = [(9.0, 8.0), (14.6, 0.03), (8.0, 3.1), (9.0, 3.1), (0.4, 0.39)]
    there, back = BrownianPath(2, SHAPE), BrownianPath(2, SHAPE)
    draws = [there.between(*pair) for pair in ends]
    for pair, draw in zip(reversed(ends), reversed(draws), strict=True):
        assert torch.equal(back.between(*pair), draw)
        assert torch.equal(BrownianPath(2, SHAPE).between(*pair), draw)
        assert not torch.equal(BrownianPath(3, SHAPE).between(*pair), draw)


def test_a_path_in_a_batch_is_the_path_alone_and_leaves_the_draws_as_they_are() -> None:
    together, alone, plain = PictureNoise([7, 8], SHAPE), PictureNoise([8], SHAPE), PictureNoise([8], SHAPE)
    before = torch.get_rng_state()
    for ends in ((14.6, 9.0), (9.0, 0.2)):
        assert torch.equal(together.between(*ends)[1:], alone.between(*ends))
        assert torch.equal(alone(), plain())
    assert torch.equal(before, torch.get_rng_state())


def test_levels_nearer_than_the_grid_still_have_an_increment() -> None:
    draw = BrownianPath(4, VALUES).between(1.0, 1.0 - 1e-12)
    assert float(draw.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (1.0, 2.0), (1.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_a_path_goes_down_only(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="a path goes from a level down to a lower one above 0"):
        PictureNoise([0], SHAPE).between(*ends)


def test_another_walk_meets_other_noise_on_the_same_levels_and_the_draws_go_on() -> None:
    once, twice = PictureNoise([3, 4], SHAPE), PictureNoise([3, 4], SHAPE)
    before = twice.between(4.0, 2.0)
    twice.begin_another_walk()
    assert (twice.between(4.0, 2.0) - before).abs().mean() > 0.5
    assert torch.equal(once(), twice())
    twice.begin_another_walk()
    alone = PictureNoise([4], SHAPE)
    for _ in range(2):
        alone.begin_another_walk()
    assert torch.equal(twice.between(4.0, 2.0)[1], alone.between(4.0, 2.0)[0])


@pytest.mark.gpu
def test_draws_on_the_gpu_are_those_of_the_cpu() -> None:
    assert torch.equal(PictureNoise([5], SHAPE, "cuda")().cpu(), PictureNoise([5], SHAPE)())
