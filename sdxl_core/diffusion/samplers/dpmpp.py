"""DPM-Solver++, second order: exact in the linear part of the equation, in h = ln(sigma / sigma_next)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import ancestral_levels, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M): deterministic, second order, one model call a step.

    Extrapolates `denoised` from this step and the one before to the middle of the step, in ln(sigma). The first step,
    and one to level 0, are first order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    check_sigmas(sigmas)
    before: tuple[Tensor, float] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        h = math.log(sigma / sigma_next)
        target = denoised
        if before is not None:
            denoised_before, h_before = before
            target = denoised + h / (2 * h_before) * (denoised - denoised_before)
        x = toward(target, x, sigma_next / sigma)
        before = denoised, h
        yield Step(i, sigma_next, x, denoised, calls=1)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++(2S) to a lower level, then fresh noise up to the next: stochastic, two model calls a step.

    The second call is in the middle of the step, in ln(sigma). A step that goes down to level 0 has no middle and makes
    one call. With eta 0 the method is deterministic and of second order.

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

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2; noise as in `euler_ancestral`.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        denoised, calls = denoise(x, sigma).denoised, 1
        if down > 0:
            middle = math.sqrt(sigma * down)
            denoised, calls = denoise(toward(denoised, x, middle / sigma), middle).denoised, 2
        x = toward(denoised, x, down / sigma)
        if up > 0:
            x = x + s_noise * up * noise()
        yield Step(i, sigma_next, x, denoised, calls)
