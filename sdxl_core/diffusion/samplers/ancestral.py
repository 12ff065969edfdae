"""Second-order methods to a lower level, then fresh noise up to the next; and the original reverse diffusion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.euler import euler_ancestral
from sdxl_core.diffusion.samplers.moves import ancestral_levels, phi_2, toward, unguided
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


def res_multistep_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """RES multistep to a lower level, then fresh noise up to the next: stochastic, one model call a step.

    Integrates exactly the line in ln(sigma) through this prediction and the one before, which counts as far off as the
    step before went down. The first step, and one that goes down to level 0, are first order. With eta 0 the method is
    deterministic and of second order.

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

    Source: Zhang et al. 2023, arXiv:2308.02157; its distance to the step before as in ComfyUI.
    """
    check_sigmas(sigmas)
    before: tuple[Tensor, float] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        denoised = denoise(x, sigma).denoised
        x = toward(denoised, x, down / sigma)
        h = math.log(sigma / down) if down > 0 else math.inf
        if before is not None and down > 0:
            denoised_before, h_before = before
            x = x + phi_2(h) * h / h_before * (denoised - denoised_before)
        if up > 0:
            x = x + s_noise * up * noise()
        before = denoised, h
        yield Step(i, sigma_next, x, denoised, calls=1)


def euler_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """CFG++ form of Euler ancestral: stochastic, one model call a step.

    The noise that stays in x is that of the unconditional prediction, which guidance does not pull off the data; so a
    guidance scale of 0.5 to 1.5 is enough. Without guidance this is `euler_ancestral`.

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

    Source: Chung et al. 2024, arXiv:2406.08070, algorithm 2; noise as in `euler_ancestral`.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        prediction = denoise(x, sigma)
        x = prediction.denoised + down / sigma * (x - unguided(prediction))
        if up > 0:
            x = x + s_noise * up * noise()
        yield Step(i, sigma_next, x, prediction.denoised, calls=1)


def dpmpp_2s_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """CFG++ form of DPM-Solver++(2S) ancestral: stochastic, two model calls a step.

    Moves toward the unconditional prediction, then adds what guidance adds to the prediction at the beginning of the
    step. Without guidance this is `dpmpp_2s_ancestral`.

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

    Source: Chung et al. 2024, arXiv:2406.08070, carried over to DPM-Solver++(2S) as in ComfyUI.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        first = denoise(x, sigma)
        denoised, calls = first.denoised, 1
        if down > 0:
            uncond = unguided(first)
            middle = math.sqrt(sigma * down)
            second = denoise(toward(uncond, x, middle / sigma), middle)
            x = toward(unguided(second), x, down / sigma) + (denoised - uncond)
            denoised, calls = second.denoised, 2
        else:
            x = denoised
        if up > 0:
            x = x + s_noise * up * noise()
        yield Step(i, sigma_next, x, denoised, calls)
