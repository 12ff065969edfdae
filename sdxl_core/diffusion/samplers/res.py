"""RES, the refined exponential solver, as a multistep method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import ancestral_levels, phi_2, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def res_multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """RES multistep: deterministic, second order, one model call a step.

    Integrates exactly the line in ln(sigma) through this prediction and the one before; `dpmpp_2m` takes its middle
    instead. The first step, and one to level 0, are first order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Zhang et al. 2023, arXiv:2308.02157.
    """
    yield from res_multistep_ancestral(denoise, x, sigmas, noise=noise, eta=0.0)


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
