"""Restart sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.heun import heun
from sdxl_core.errors import ScheduleError
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor

RHO = 7.0


def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    restarts: int = 1,
    restart_steps: int = 9,
    restart_low: float = 0.1,
    restart_high: float = 2.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Restart sampling: Heun's steps that once near the end go back up with fresh noise; two model calls each.

    At the level nearest to restart_low, x is noised up to restart_high and walked down again on levels even in
    sigma^(1/7): the noise wipes out the errors made so far, the walk without noise adds few. The step that arrives at
    that level holds all of it, so it makes more calls than others. A list without a level above 0 to restart from below
    restart_high is walked once, as by `heun`.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw a restart.
        restarts: how many times; 0 is `heun`.
        restart_steps: steps of each walk; 0 is no restart.
        restart_low: restarts begin at the level of the list that is nearest to this one, in ln(sigma).
        restart_high: the level that they go up to.
        s_noise: standard deviation of the fresh noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease, or restart_low is not below restart_high.

    Source: Xu et al. 2023, arXiv:2306.14878, algorithm 1; levels and counts as in A1111, which takes the
        steps of the restarts from those asked for.
    """
    check_sigmas(sigmas)
    if restart_low >= restart_high:
        raise ScheduleError(f"restart_low {restart_low:g} must be below restart_high {restart_high:g}")
    arrival = _nearest(sigmas[1:], restart_low)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        (step,) = heun(denoise, x, (sigma, sigma_next), noise=noise)
        x, denoised, calls = step.x, step.denoised, step.calls
        if restart_steps > 0 and sigma_next == arrival < restart_high:
            levels = _levels(restart_high, sigma_next, restart_steps)
            for _ in range(restarts):
                x = x + s_noise * math.sqrt(restart_high**2 - sigma_next**2) * noise()
                for step in heun(denoise, x, levels, noise=noise):
                    x, denoised, calls = step.x, step.denoised, calls + step.calls
        yield Step(i, sigma_next, x, denoised, calls)


def _nearest(levels: Sequence[float], wanted: float) -> float:
    """The level above 0 nearest to the wanted one, in ln(sigma); infinity where there is none."""
    above = [level for level in levels if level > 0] if wanted > 0 else []
    return min(above, key=lambda level: abs(math.log(level / wanted)), default=math.inf)


def _levels(high: float, low: float, n: int) -> list[float]:
    """N + 1 levels from high to low, both exactly, even in sigma^(1/7)."""
    top, bottom = high ** (1 / RHO), low ** (1 / RHO)
    return [high, *((top + i / n * (bottom - top)) ** RHO for i in range(1, n)), low]
