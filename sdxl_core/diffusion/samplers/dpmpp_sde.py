"""DPM-Solver++ for the reverse diffusion: each step is exact in the linear part of the equation, noise included."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import ancestral_levels, diffusion_step, phi_2, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Iterator[Step]:
    """DPM-Solver++(2S) of the reverse diffusion: stochastic, two model calls a step.

    The second call is at the share r of the step, in ln(sigma); both of its moves follow the picture's path. A step to
    level 0 makes one call. With eta 0 the method is deterministic and of second order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: two draws from the path a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; see `ancestral_levels`.
        s_noise: standard deviation of the fresh noise.
        r: where the second call is, above 0 to 1.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1, with the noise that k-diffusion adds to both of its stages.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        middle = sigma ** (1 - r) * sigma_next**r
        halfway = _moved(denoised, x, sigma, middle, eta, s_noise, noise)
        second = denoise(halfway, middle).denoised
        x = _moved(denoised + (second - denoised) / (2 * r), x, sigma, sigma_next, eta, s_noise, noise)
        yield Step(i, sigma_next, x, second, calls=2)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
) -> Iterator[Step]:
    """DPM-Solver++(2M) of the reverse diffusion: stochastic, one model call a step.

    Extrapolates `denoised` from this step and the one before. The first step, and one to level 0, are first order. With
    eta 0 the method is deterministic and of second order; with "midpoint" it is then `dpmpp_2m`.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw from the path a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; see `diffusion_step`.
        s_noise: standard deviation of the fresh noise.
        solver_type: how the line through the two predictions is integrated: "midpoint" takes its value in the middle of
            the step, "heun" integrates it exactly.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Lu et al. 2022, arXiv:2211.01095, appendix (SDE-DPM-Solver++(2M)); eta as in k-diffusion.
    """
    check_sigmas(sigmas)
    before: tuple[Tensor, float] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        h = math.log(sigma / sigma_next)
        ratio, spread = diffusion_step(sigma, sigma_next, eta)
        x = toward(denoised, x, ratio)
        if before is not None:
            denoised_before, h_before = before
            weight = (1 - ratio) / 2 if solver_type == "midpoint" else phi_2((1 + eta) * h)
            x = x + weight * h / h_before * (denoised - denoised_before)
        if spread > 0:
            x = x + s_noise * spread * noise.between(sigma, sigma_next)
        before = denoised, h
        yield Step(i, sigma_next, x, denoised, calls=1)


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++(3M) of the reverse diffusion: stochastic, one model call a step.

    Extrapolates with the last three predictions; the first step is first order, the second is `dpmpp_2m_sde` with
    "heun". With eta 0 the method is deterministic and of second order: as published, the second difference has half the
    weight that third order needs, which makes the error smaller but not its order higher.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw from the path a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; see `diffusion_step`.
        s_noise: standard deviation of the fresh noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: k-diffusion's extension of Lu et al. 2022, arXiv:2211.01095, to three steps.
    """
    check_sigmas(sigmas)
    slopes: deque[tuple[Tensor, float]] = deque(maxlen=2)  # newest first: a slope in ln(sigma), and over which h
    before: tuple[Tensor, float] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        if before is not None:
            denoised_before, h_before = before
            slopes.appendleft(((denoised - denoised_before) / h_before, h_before))
        h = math.log(sigma / sigma_next)
        ratio, spread = diffusion_step(sigma, sigma_next, eta)
        x = toward(denoised, x, ratio)
        if slopes:
            phi = phi_2((1 + eta) * h)
            slope, h_1 = slopes[0]
            if len(slopes) == 2:
                slope_before, h_2 = slopes[1]
                bend = (slope - slope_before) / (h_1 + h_2)
                slope = slope + bend * h_1
                x = x - (phi / ((1 + eta) * h) - 0.5) * h**2 * bend
            x = x + phi * h * slope
        if spread > 0:
            x = x + s_noise * spread * noise.between(sigma, sigma_next)
        before = denoised, h
        yield Step(i, sigma_next, x, denoised, calls=1)


def _moved(
    denoised: Tensor, x: Tensor, sigma: float, sigma_next: float, eta: float, s_noise: float, noise: Noise
) -> Tensor:
    """From x at sigma toward a fixed prediction, down and up again to sigma_next."""
    down, up = ancestral_levels(sigma, sigma_next, eta)
    moved = toward(denoised, x, down / sigma)
    return moved + s_noise * up * noise.between(sigma, sigma_next) if up > 0 else moved
