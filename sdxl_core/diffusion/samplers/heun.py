"""Heun's method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import Churn, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def heun(
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
    """Euler's step, then again with the mean of the slopes at both ends: second order, two model calls a step.

    A step to level 0 has no slope at its end and stays Euler's: one call.

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

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """
    check_sigmas(sigmas)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise, steps=len(sigmas) - 1)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma_hat = churn.raised(x, sigma, noise)
        denoised = denoise(x, sigma_hat).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        slope = (x - denoised) / sigma_hat
        predicted = toward(denoised, x, sigma_next / sigma_hat)
        denoised = denoise(predicted, sigma_next).denoised
        slope_next = (predicted - denoised) / sigma_next
        x = x + (sigma_next - sigma_hat) * 0.5 * (slope + slope_next)
        yield Step(i, sigma_next, x, denoised, calls=2)
