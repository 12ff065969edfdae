"""Samplers for networks distilled to leap: each step goes to the clean latent, or near it, and is noised again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def lcm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, s_noise: float = 1.0) -> Iterator[Step]:
    """LCM, the multistep sampling of a consistency model: stochastic, one model call a step.

    Every step is a prediction of the clean latent, noised to the next level. For networks distilled so that one
    prediction is a picture; it does not solve the equation of any other. Their scaling at the boundary, which tells
    the prediction from x by less than 1e-5 at SDXL's levels, belongs to the network and is left out.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a step, none for a step to level 0.
        s_noise: standard deviation of the noise, as a share of the level.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Luo et al. 2023, arXiv:2310.04378, algorithm 3, for x = x0 + sigma eps.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        x = denoised + s_noise * sigma_next * noise() if sigma_next > 0 else denoised
        yield Step(i, sigma_next, x, denoised, calls=1)


def tcd(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, eta: float = 0.3) -> Iterator[Step]:
    """TCD, strategic stochastic sampling of a trajectory consistency model: one model call a step.

    Euler's step below the next level, to the share 1 - eta of its timestep, then noise up to it. Timesteps are those of
    SDXL's training table, whole ones as the method's authors have it.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a step, none for a step to level 0 or with eta 0.
        eta: the paper's gamma, 0 (then this is `euler`) to 1 (then nearly `lcm`).

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Zheng et al. 2024, arXiv:2402.19159, algorithm 4.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        down = _earlier(sigma_next, eta)
        x = toward(denoised, x, down / sigma)
        if down < sigma_next:
            x = x + math.sqrt(sigma_next**2 - down**2) * noise()
        yield Step(i, sigma_next, x, denoised, calls=1)


def _earlier(sigma: float, eta: float) -> float:
    """The level at the share 1 - eta of sigma's timestep, rounded down to a whole one; never above sigma."""
    if sigma == 0 or eta == 0:
        return sigma
    from sdxl_core.diffusion import discretization  # numpy is kept off the start-up path

    table = discretization.legacy_ddpm_table()
    timestep = discretization.sigma_to_fractional_timestep(sigma, table)
    return min(sigma, float(table[int((1 - eta) * timestep)]))
