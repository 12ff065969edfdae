import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support_closed_form import Gaussian, legacy_ddpm, silence, steps

from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.samplers.moves import Churn, ancestral_levels, toward


@given(st.floats(0.01, 100.0), st.floats(0.0, 0.999), st.floats(0.0, 3.0))
def test_ancestral_levels_add_up_to_the_next_level(sigma: float, share: float, eta: float) -> None:
    sigma_next = sigma * share
    down, up = ancestral_levels(sigma, sigma_next, eta)
    assert 0 <= up <= sigma_next
    assert 0 <= down <= sigma_next
    assert math.isclose(down**2 + up**2, sigma_next**2, rel_tol=1e-9)


@given(st.floats(0.01, 100.0), st.floats(0.001, 0.999))
def test_full_ancestral_noise_is_that_of_the_reverse_diffusion(sigma: float, share: float) -> None:
    # q(x_next | x, x0) of a variance-exploding process: variance sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2.
    sigma_next = sigma * share
    down, up = ancestral_levels(sigma, sigma_next, 1.0)
    assert math.isclose(up**2, sigma_next**2 * (1 - share**2), rel_tol=1e-9)
    assert math.isclose(down, sigma_next**2 / sigma, rel_tol=1e-6)


def test_no_ancestral_noise_goes_straight_down() -> None:
    assert ancestral_levels(3.0, 2.0, 0.0) == (2.0, 0.0)
    assert ancestral_levels(3.0, 0.0, 1.0) == (0.0, 0.0)


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0.01, 50.0), st.floats(0.0, 1.0))
def test_toward_is_euler_and_the_exponential_step(denoised: float, x: float, sigma: float, share: float) -> None:
    sigma_next = sigma * share
    moved = toward(denoised, x, sigma_next / sigma)  # type: ignore[arg-type]
    assert math.isclose(moved, x + (sigma_next - sigma) * (x - denoised) / sigma, rel_tol=1e-9, abs_tol=1e-9)
    assert toward(denoised, x, 0.0) == denoised  # type: ignore[arg-type]


def test_churn_raises_the_level_by_its_share_and_no_more_than_the_root_of_two() -> None:
    x = torch.zeros(1, 4, 8, 8)
    for s_churn, gamma in ((2.0, 0.1), (1000.0, math.sqrt(2) - 1)):
        noise = PictureNoise([0], (4, 8, 8))
        raised, level = Churn(s_churn, 0.0, math.inf, 1.5, steps=20).raised(x, 3.0, noise)
        assert level == pytest.approx(3.0 * (1 + gamma))
        drawn = PictureNoise([0], (4, 8, 8))()
        torch.testing.assert_close(raised, drawn * 1.5 * 3.0 * math.sqrt((1 + gamma) ** 2 - 1))


@pytest.mark.parametrize(("s_churn", "sigma"), [(0.0, 3.0), (5.0, 0.99), (5.0, 4.01)])
def test_churn_outside_its_range_does_nothing(s_churn: float, sigma: float) -> None:
    x = torch.ones(1)
    raised, level = Churn(s_churn, 1.0, 4.0, 1.0, steps=20).raised(x, sigma, silence)
    assert raised is x
    assert level == sigma


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_is_algorithm_two_of_the_paper(name: str) -> None:
    sigmas, gaussian = legacy_ddpm(20), Gaussian(mean=0.3)
    options = {"s_churn": 8.0, "s_tmin": 0.2, "s_tmax": 9.0, "s_noise": 1.007}
    noise = PictureNoise([4], (4, 6, 5))
    x = noise.start(sigmas[0])
    replay = PictureNoise([4], (4, 6, 5))
    expected = algorithm_two(replay.start(sigmas[0]).numpy(), sigmas, gaussian, replay, name == "heun", **options)
    last = steps(name, gaussian, x, sigmas, noise, **options)[-1].x.numpy()
    assert np.linalg.norm(last - expected) / np.linalg.norm(expected) < 1e-5


def algorithm_two(  # type: ignore[no-untyped-def]
    x, t, gaussian: Gaussian, noise: PictureNoise, correct: bool, s_churn, s_tmin, s_tmax, s_noise
):
    """Karras et al. 2022, algorithm 2, in double precision and in the paper's symbols."""
    n, x = len(t) - 1, x.astype(np.float64)
    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t[i] <= s_tmax else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x
        if gamma:
            x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * noise().double().numpy()
        d = (x_hat - gaussian(x_hat, t_hat).denoised) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if correct and t[i + 1] != 0:
            d_prime = (x - gaussian(x, t[i + 1]).denoised) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    return x
