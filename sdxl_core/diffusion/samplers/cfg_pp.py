"""CFG++ forms: x keeps the noise of the unconditional prediction, and takes the guided prediction for the rest.

They read `Prediction.uncond`. Where no guidance ran (a guider without any, a level outside its interval) it is None,
and the step is that of the plain method. At scale 1 guidance makes it for them, see `Sampler.uncond`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import ancestral_levels, phi_2, toward, unguided
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def euler_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """CFG++ form of Euler: deterministic, first order, one model call a step.

    A guidance scale of 0.5 to 1.5 is enough. Without guidance this is `euler`.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Chung et al. 2024, arXiv:2406.08070, algorithm 2, for x = x0 + sigma eps.
    """
    yield from euler_ancestral_cfg_pp(denoise, x, sigmas, noise=noise, eta=0.0)


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


def dpmpp_2m_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """CFG++ form of DPM-Solver++(2M): deterministic, second order, one model call a step.

    The extrapolation is from the unconditional prediction before to the guided one now, so it carries half of what
    guidance adds, too. Without guidance this is `dpmpp_2m`.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Chung et al. 2024, arXiv:2406.08070, carried over to DPM-Solver++(2M) as in ComfyUI.
    """
    check_sigmas(sigmas)
    before: tuple[Tensor, float] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        prediction = denoise(x, sigma)
        denoised, uncond = prediction.denoised, unguided(prediction)
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        h = math.log(sigma / sigma_next)
        x = denoised + sigma_next / sigma * (x - uncond)
        if before is not None:
            uncond_before, h_before = before
            x = x - math.expm1(-h) * h / (2 * h_before) * (denoised - uncond_before)
        before = uncond, h
        yield Step(i, sigma_next, x, denoised, calls=1)


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


def res_multistep_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """CFG++ form of RES multistep: deterministic, second order, one model call a step.

    See `res_multistep_ancestral_cfg_pp`. Without guidance this is `res_multistep`.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Chung et al. 2024, arXiv:2406.08070, carried over to RES multistep as in ComfyUI.
    """
    yield from res_multistep_ancestral_cfg_pp(denoise, x, sigmas, noise=noise, eta=0.0)


def res_multistep_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """CFG++ form of RES multistep ancestral: stochastic, one model call a step.

    Adds to x what guidance adds to the prediction, then moves it along the line through the unconditional predictions;
    the first step, and one that goes down to level 0, are those of `euler_ancestral_cfg_pp`. Without guidance this is
    `res_multistep_ancestral`.

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

    Source: Chung et al. 2024, arXiv:2406.08070, carried over to RES multistep as in ComfyUI.
    """
    check_sigmas(sigmas)
    before: tuple[Tensor, float] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral_levels(sigma, sigma_next, eta)
        prediction = denoise(x, sigma)
        denoised, uncond = prediction.denoised, unguided(prediction)
        h = math.log(sigma / down) if down > 0 else math.inf
        if before is None or down == 0:
            x = denoised + down / sigma * (x - uncond)
        else:
            uncond_before, h_before = before
            x = toward(uncond, x + (denoised - uncond), down / sigma)
            x = x + phi_2(h) * h / h_before * (uncond - uncond_before)
        if up > 0:
            x = x + s_noise * up * noise()
        before = uncond, h
        yield Step(i, sigma_next, x, denoised, calls=1)
