"""Heun++."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import Churn, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def heunpp2(
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
    """Heun++, Euler's steps to the next two levels, their slopes averaged: first order, three model calls a step.

    The slopes ahead weigh as much as their levels are near to the first one, at most a third each, so that few steps
    from high levels gain and the last ones are Euler's. The last step but one looks one level ahead, the last none.

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

    Source: Carzit, sd-webui-samplers-scheduler; no publication. Churn as in `euler`.
    """
    check_sigmas(sigmas)
    steps = len(sigmas) - 1
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise, steps=steps)
    for i in range(steps):
        x, sigma = churn.raised(x, sigmas[i], noise)
        ahead = sigmas[i + 1 : min(i + 3, steps)]
        predicted, at, slopes = x, sigma, []
        for level in (*ahead, sigmas[i + 1 + len(ahead)]):
            denoised = denoise(predicted, at).denoised
            slopes.append((predicted - denoised) / at)
            predicted, at = toward(denoised, predicted, level / at), level
        if not ahead:
            yield Step(i, sigmas[i + 1], predicted, denoised, calls=1)
            continue
        slope = slopes[0]
        for level, later in zip(ahead, slopes[1:], strict=True):
            slope = slope + level / (len(slopes) * sigmas[0]) * (later - slopes[0])
        x = x + (sigmas[i + 1] - sigma) * slope
        yield Step(i, sigmas[i + 1], x, denoised, calls=len(slopes))
