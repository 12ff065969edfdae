"""Euler's method, with churn or ancestral noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import Churn, ancestral_levels, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler's method for dx/dsigma = (x - denoised) / sigma: first order, one model call a step.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: drawn from only where churn adds noise.
        s_churn: extra noise over the run, 0 or more; the four options are those of `Churn`.
        s_tmin: lowest level that gets extra noise.
        s_tmax: highest level that gets extra noise.
        s_noise: standard deviation of the extra noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its second-order correction.
    """
    check_sigmas(sigmas)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise, steps=len(sigmas) - 1)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma_hat = churn.raised(x, sigma, noise)
        denoised = denoise(x, sigma_hat).denoised
        x = toward(denoised, x, sigma_next / sigma_hat)
        yield Step(i, sigma_next, x, denoised, calls=1)


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler's method to a lower level, then fresh noise up to the next: stochastic, one model call a step.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 (then this is `euler`) or more; see `ancestral_levels`.
        s_noise: standard deviation of the fresh noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Song et al. 2020, arXiv:2010.02502, equation 12, for x = x0 + sigma eps.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        denoised = denoise(x, sigma).denoised
        x = toward(denoised, x, down / sigma)
        if up > 0:
            x = x + s_noise * up * noise()
        yield Step(i, sigma_next, x, denoised, calls=1)


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DDIM, which for x = x0 + sigma eps is Euler's method: first order, one model call a step.

    With eta 0, its default, it is `euler` without churn, number for number; with more it is `euler_ancestral`. What
    other programs call DDIM differs from their Euler in the levels alone: `leading` ones for its timesteps.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; 1 is DDPM.
        s_noise: standard deviation of the fresh noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Song et al. 2020, arXiv:2010.02502, equations 12 and 16, for x = x0 + sigma eps.
    """
    yield from euler_ancestral(denoise, x, sigmas, noise=noise, eta=eta, s_noise=s_noise)
