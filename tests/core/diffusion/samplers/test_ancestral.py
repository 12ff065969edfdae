import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from support_closed_form import Gaussian, TwoPeaks, legacy_ddpm, silence, steps

from sdxl_core.diffusion.discretization import edm
from sdxl_core.diffusion.noise import PictureNoise

ANCESTRAL = ["euler_ancestral", "dpmpp_2s_ancestral"]


@pytest.mark.parametrize("name", ANCESTRAL)
def test_samples_have_the_law_of_the_data(name: str) -> None:
    gaussian = Gaussian(std=0.7, mean=0.4)
    sigmas = edm(1000, rho=7.0)
    noise = PictureNoise([0, 1, 2, 3], (4, 40, 40))
    x = gaussian.mean + noise() * math.sqrt(gaussian.std**2 + sigmas[0] ** 2)
    sample = steps(name, gaussian, x, sigmas, noise)[-1].x.double()
    n = sample.numel()
    # Exact recursion of mean and variance: at 1000 steps the methods themselves are off by at most 0.003 in the
    # standard deviation, which is one standard error here. With 4.5 standard errors allowed, a right sampler fails for
    # at most one seed in 2000; the seeds are fixed.
    assert abs(float(sample.mean()) - 0.4) < 4.5 * 0.7 / math.sqrt(n)
    assert abs(float(sample.std()) - 0.7) < 4.5 * 0.7 / math.sqrt(2 * n)


def test_without_noise_euler_ancestral_is_euler() -> None:
    sigmas = legacy_ddpm(15)
    x = PictureNoise([0], (4, 6, 5)).start(sigmas[0])
    ancestral = steps("euler_ancestral", TwoPeaks(), x, sigmas, silence, eta=0.0)
    assert torch.equal(ancestral[-1].x, steps("euler", TwoPeaks(), x, sigmas)[-1].x)


def test_without_noise_2s_is_the_paper_in_double_precision() -> None:
    sigmas, gaussian = legacy_ddpm(20), Gaussian(mean=0.3)
    x = PictureNoise([0], (4, 6, 5)).start(sigmas[0])
    last = steps("dpmpp_2s_ancestral", gaussian, x, sigmas, silence, eta=0.0)[-1].x.numpy()
    expected = singlestep_2s(x.double().numpy(), sigmas, gaussian, lambda: 0.0, eta=0.0)
    assert np.linalg.norm(last - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.6, 1.003), (1.4, 1.0)])
def test_2s_is_the_paper_in_double_precision(eta: float, s_noise: float) -> None:
    sigmas, gaussian = legacy_ddpm(20), Gaussian(mean=0.3)
    noise, replay = (PictureNoise([9], (4, 6, 5)) for _ in range(2))
    x = noise.start(sigmas[0])
    last = steps("dpmpp_2s_ancestral", gaussian, x, sigmas, noise, eta=eta, s_noise=s_noise)[-1].x.numpy()
    expected = singlestep_2s(
        replay.start(sigmas[0]).double().numpy(), sigmas, gaussian, lambda: s_noise * replay().double().numpy(), eta
    )
    assert np.linalg.norm(last - expected) / np.linalg.norm(expected) < 1e-5


def singlestep_2s(x, sigmas, gaussian: Gaussian, noise, eta: float):  # type: ignore[no-untyped-def]
    """Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2, in the paper's variables.

    The paper's x is alpha times ours, with alpha = 1 / sqrt(1 + sigma^2) and sigma_t = alpha sigma, so that
    lambda = ln(alpha / sigma_t) = -ln(sigma); noise is added after each step as DDIM does.
    """

    def alpha(level: float) -> float:
        return 1 / math.sqrt(1 + level**2)

    def step(y, s: float, t: float, prediction):  # type: ignore[no-untyped-def]
        """One exponential step of the paper's y from level s to t, toward a fixed prediction."""
        h = math.log(s / t)
        return alpha(t) * t / (alpha(s) * s) * y - alpha(t) * math.expm1(-h) * prediction

    for s, t_next in pairwise(sigmas):
        up = min(t_next, eta * t_next * math.sqrt(1 - (t_next / s) ** 2))
        t = math.sqrt(t_next**2 - up**2)
        first = gaussian(x, s).denoised
        if t == 0:
            x = first + up * noise() if up else first
            continue
        middle = math.exp((math.log(s) + math.log(t)) / 2)
        u = step(alpha(s) * x, s, middle, first)
        second = gaussian(u / alpha(middle), middle).denoised
        x = step(alpha(s) * x, s, t, second) / alpha(t)
        if up:
            x = x + up * noise()
    return x
