"""Multistep methods on slopes: improved pseudo numerical methods, and gradient estimation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.lms import adams_weights
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the newest slope and those before it, on even levels."""


def ipndm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """Improved PNDM: deterministic, second order, one model call a step.

    Adams-Bashforth with the weights for even levels, whatever the levels are: of fourth order where they are even, of
    second where their distances change slowly. `ipndm_v` has weights that fit. A step to level 0 is Euler's.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        order: slopes used, 1 (then this is `euler`) to 4.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Liu et al. 2022, arXiv:2202.09778, equation 12, without its Runge-Kutta start, as Zhang and Chen 2022,
        arXiv:2204.13902, appendix H.2.
    """
    check_sigmas(sigmas)
    slopes: deque[Tensor] = deque(maxlen=order)  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        slopes.appendleft((x - denoised) / sigma)
        for weight, slope in zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes, strict=True):
            x = x + (sigma_next - sigma) * weight * slope
        yield Step(i, sigma_next, x, denoised, calls=1)


def ipndm_v(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """Improved PNDM with weights that fit the levels: deterministic, fourth order, one model call a step.

    That is `lms`, but for a step to level 0, which is Euler's. The weights in the published code of this name agree on
    even levels up to third order; elsewhere slips in its fractions make them others.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        order: slopes used, 1 (then this is `euler`) to 4.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Zhou et al. 2023, arXiv:2312.00094 (diff-sampler), with the weights of Adams and Bashforth.
    """
    check_sigmas(sigmas)
    slopes: deque[Tensor] = deque(maxlen=order)  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        slopes.appendleft((x - denoised) / sigma)
        nodes = [sigmas[i - j] for j in range(len(slopes))]
        for weight, slope in zip(adams_weights(nodes, sigma_next), slopes, strict=True):
            x = x + weight * slope
        yield Step(i, sigma_next, x, denoised, calls=1)


def gradient_estimation(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, ge_gamma: float = 2.0
) -> Iterator[Step]:
    """Euler's steps with the slope carried on from the one before: deterministic, first order, one model call a step.

    The first step, and one to level 0, are Euler's.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        ge_gamma: how far the slope is carried on: 1 is `euler`, 1.5 of second order on even levels.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Permenter and Yuan 2024, arXiv:2306.04848, algorithm 2 (the improved sampler).
    """
    check_sigmas(sigmas)
    before: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        slope = (x - denoised) / sigma
        carried = slope if before is None else slope + (ge_gamma - 1) * (slope - before)
        x, before = x + (sigma_next - sigma) * carried, slope
        yield Step(i, sigma_next, x, denoised, calls=1)
