"""The original reverse diffusion, and DPM-Solver-2 with noise in its way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.euler import euler_ancestral
from sdxl_core.diffusion.samplers.moves import ancestral_levels, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def ddpm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """DDPM's reverse diffusion: stochastic, one model call a step.

    Between any two levels its posterior, with the smaller of the paper's two variances, is `euler_ancestral` at eta 1.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a step, none for a step to level 0.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7, for x = x0 + sigma eps.
    """
    yield from euler_ancestral(denoise, x, sigmas, noise=noise)


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver-2 to a lower level, then fresh noise up to the next: stochastic, two model calls a step.

    The slope of the whole step is that in its middle, in ln(sigma). A step that goes down to level 0 has no middle and
    makes one call. With eta 0 the method is deterministic and of second order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; see `ancestral_levels`.
        s_noise: standard deviation of the fresh noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1; noise as in `euler_ancestral`.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        denoised, calls = denoise(x, sigma).denoised, 1
        if down > 0:
            middle = math.sqrt(sigma * down)
            halfway = toward(denoised, x, middle / sigma)
            denoised, calls = denoise(halfway, middle).denoised, 2
            x = x + (down - sigma) * (halfway - denoised) / middle
        else:
            x = denoised
        if up > 0:
            x = x + s_noise * up * noise()
        yield Step(i, sigma_next, x, denoised, calls)
