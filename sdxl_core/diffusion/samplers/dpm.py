"""DPM-Solver: exponential steps of second and third order that call for the network inside the step."""

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

SAFETY = 0.81  # an adaptive step is accepted where the next could be at least this share of it


def dpm_2(
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
    """DPM-Solver-2: second order, two model calls a step.

    The slope of the whole step is that in its middle, in ln(sigma). A step to level 0 has no middle and makes one call.

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

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1 with r = 1/2; churn as in `euler`.
    """
    check_sigmas(sigmas)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise, steps=len(sigmas) - 1)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma_hat = churn.raised(x, sigma, noise)
        denoised = denoise(x, sigma_hat).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        middle = math.sqrt(sigma_hat * sigma_next)
        halfway = toward(denoised, x, middle / sigma_hat)
        denoised = denoise(halfway, middle).denoised
        x = x + (sigma_next - sigma_hat) / middle * (halfway - denoised)
        yield Step(i, sigma_next, x, denoised, calls=2)


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise) -> Iterator[Step]:
    """DPM-Solver-fast: deterministic, third order, one model call a step.

    Three steps of the list are one step of third order, whose two inner levels lie at thirds in ln(sigma), not where
    the list has them. What is left over above level 0 is of second and first order, as is, for the last three, a list
    that threes would fill.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.

    Yields:
        n steps; those inside a step of higher order are its stages. The last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Lu et al. 2022, arXiv:2206.00927, section 3.3 and appendix D.3.
    """
    check_sigmas(sigmas)
    last = len(sigmas) - 1 - (sigmas[-1] == 0)
    i = 0
    for order in _orders(last):
        stages = [sigmas[i] * (sigmas[i + order] / sigmas[i]) ** (j / order) for j in range(order)] + [
            sigmas[i + order]
        ]
        eps: list[Tensor] = []
        origin = x
        for sigma, sigma_next in pairwise(stages):
            denoised = denoise(x, sigma).denoised
            eps.append((x - denoised) / sigma)
            x = _stage(origin, eps, stages[0], sigma_next, order)
            yield Step(i, sigma_next, x, denoised, calls=1)
            i += 1
    if sigmas[-1] == 0:
        denoised = denoise(x, sigmas[-2]).denoised
        yield Step(i, 0.0, denoised, denoised, calls=1)


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
) -> Iterator[Step]:
    """DPM-Solver-12 or -23 with steps of its own: deterministic, as many model calls as the picture needs.

    Of the list only the first level, the last above 0 and whether it ends at 0 count. A step is made by a method of
    the order and by one of the order below; where they differ by more than allowed, it is made again, smaller. The
    allowance is judged over the whole batch, so a batch should be one picture.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: 2 or more strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        order: 2 or 3, also the model calls of a step that is accepted at once.
        rtol: allowed difference as a share of x.
        atol: allowed difference where x is near 0; both are meant as a root mean square.
        h_init: length of the first step tried, in ln(sigma).

    Yields:
        One step for each that was accepted; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 2 (DPM-Solver-12, -23); control of the steps as in k-diffusion.
    """
    check_sigmas(sigmas)
    sigma, end, h, i = sigmas[0], sigmas[-1] or sigmas[-2], h_init, 0
    before = x
    while sigma > end:
        denoised, calls, accepted = denoise(x, sigma).denoised, 1, False
        first = (x - denoised) / sigma
        while not accepted:
            target = max(end, sigma * math.exp(-h))
            low, high = _pair(denoise, x, first, sigma, target, order)
            calls += order - 1
            allowed = low.abs().maximum(before.abs()).mul(rtol).clamp(min=atol)
            error = float(((low - high) / allowed).square().mean().sqrt())
            factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / order) - 1) if math.isfinite(error) else 1.0
            accepted = factor >= SAFETY  # also what is not finite: whoever walks the steps will see it
            h *= factor
        x, before, sigma = high, low, target
        yield Step(i, sigma, x, denoised, calls)
        i += 1
    if sigmas[-1] == 0:
        denoised = denoise(x, sigma).denoised
        yield Step(i, 0.0, denoised, denoised, calls=1)


def _orders(steps: int) -> list[int]:
    """Orders of the steps of DPM-Solver-fast, which add up to `steps`."""
    if steps > 0 and steps % 3 == 0:
        return [3] * (steps // 3 - 1) + [2, 1]
    return [3] * (steps // 3) + [steps % 3] * (steps % 3 > 0)


def _pair(denoise: Denoise, x: Tensor, first: Tensor, sigma: float, target: float, order: int) -> tuple[Tensor, Tensor]:
    """One step from x at sigma to the target: by a method of `order` - 1, and by one of `order`."""
    ratio = target / sigma
    eps = [first]
    for j in range(1, order):
        level = sigma * ratio ** (j / order)
        inner = _stage(x, eps, sigma, level, order)
        eps.append((inner - denoise(inner, level).denoised) / level)
    low = x + (target - sigma) * first
    if order == 3:
        low = low + 1.5 * (target - sigma) * (eps[1] - first)
    return low, _stage(x, eps, sigma, target, order)


def _stage(x: Tensor, eps: Sequence[Tensor], sigma: float, sigma_next: float, order: int) -> Tensor:
    """From x at sigma to sigma_next, with the slopes known so far: of as high an order as they allow, at most `order`.

    The slopes eps = (x - denoised) / sigma are those at sigma and at the equal parts in ln(sigma) of a step of `order`.
    """
    moved = x + (sigma_next - sigma) * eps[0]
    if len(eps) == 1:
        return moved
    if order == 2:
        return moved + (sigma_next - sigma) * (eps[1] - eps[0])
    h = math.log(sigma / sigma_next)
    bend = sigma_next * (math.expm1(h) / h - 1)
    # The second stage lies at 2/3 and knows the slope at 1/3; the end knows the slope at 2/3.
    share = 2.0 if len(eps) == 2 else 1.5
    return moved - share * bend * (eps[-1] - eps[0])
