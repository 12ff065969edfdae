"""ER-SDE-Solver: the extended reverse-time SDE, whose noise may fall as one likes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import toward
from sdxl_core.diffusion.samplers.quadrature import integral
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    order: int = 3,
) -> Iterator[Step]:
    """ER-SDE-Solver: stochastic, one model call a step.

    Noise goes with the function f(sigma) = sigma (exp(sigma^0.3) + 10)^eta: a step keeps the share f(sigma_next) /
    f(sigma) of the distance to `denoised`, and fresh noise makes up for what the level asks beyond that. With eta 0 the
    method is deterministic and of second order: its third term corrects only a part of what third order needs.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw from the path a step, none for a step to level 0 or with eta 0.
        eta: the paper's method at 1, with less or more of its noise elsewhere; 0 or more.
        s_noise: standard deviation of the fresh noise.
        order: predictions used, 1 to 3; the first steps have fewer.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Cui et al. 2023, arXiv:2309.06169, algorithm 3 and its fifth noise function, for x = x0 + sigma eps. The
        integrals of 1 / f that the authors' code sums over 100 or 200 points are exact here.
    """
    check_sigmas(sigmas)
    denoised_before: Tensor | None = None
    slope_before: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        ratio = _kept(sigma, sigma_next, eta)
        x = toward(denoised, x, ratio)
        if denoised_before is not None and order >= 2:
            step = sigma_next - sigma
            first, second = _kept_moments(sigma, sigma_next, eta)
            slope = (denoised - denoised_before) / (sigma - sigmas[i - 1])
            x = x + (step + first) * slope
            if slope_before is not None and order >= 3:
                bend = (slope - slope_before) / ((sigma - sigmas[i - 2]) / 2)
                x = x + (step**2 / 2 + second) * bend
            slope_before = slope
        spread = math.sqrt(max(0.0, sigma_next**2 - (ratio * sigma) ** 2))
        if eta > 0 and spread > 0:
            x = x + s_noise * spread * noise.between(sigma, sigma_next)
        denoised_before = denoised
        yield Step(i, sigma_next, x, denoised, calls=1)


def _kept(sigma: float, sigma_next: float, eta: float) -> float:
    """f(sigma_next) / f(sigma)."""
    shares = (math.exp(sigma_next**0.3) + 10) / (math.exp(sigma**0.3) + 10)
    return sigma_next / sigma * math.pow(shares, eta)


def _kept_moments(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """The integrals over s, from sigma_next to sigma, of f(sigma_next) / f(s) and of that times s - sigma."""

    def kept(log_s: float) -> float:
        s = math.exp(log_s)
        return s * _kept(s, sigma_next, eta)

    ends = math.log(sigma_next), math.log(sigma)
    return integral(kept, *ends), integral(lambda log_s: kept(log_s) * (math.exp(log_s) - sigma), *ends)
