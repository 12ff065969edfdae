"""Unified predictor-corrector."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import toward
from sdxl_core.diffusion.samplers.quadrature import weights
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor

    Known = Sequence[tuple[float, Tensor]]


def uni_pc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    order: int = 3,
    solver_type: str = "bh1",
) -> Iterator[Step]:
    """UniPC, predictor and corrector of the same order: deterministic, fourth order, one model call a step.

    Predicts x at the next level from the last `order` predictions of the clean latent; once the network was called
    there, corrects x with what it said, and goes on from that without another call. The first steps, and the last ones
    before level 0, are of lower order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        order: of predictor and corrector, 1 to 3; the two together are one order better.
        solver_type: `bh1` or `bh2`, the paper's two choices of B(h): h and exp(h) - 1.

    Yields:
        n steps, each with the predicted x, which the next one corrects; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8 (prediction of the clean latent).
    """
    check_sigmas(sigmas)
    known: deque[tuple[float, Tensor]] = deque(maxlen=order)  # (level, prediction) with the newest first
    origin, used = x, 0  # where the last step began, and the order it had
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if used:
            x = _moved(origin, [*known][:used], sigma, solver_type, denoised)
        known.appendleft((sigma, denoised))
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        left = len(sigmas) - 1 - i if sigmas[-1] == 0 else order
        origin, used = x, min(order, len(known), left)
        x = _moved(origin, [*known][:used], sigma_next, solver_type, None)
        yield Step(i, sigma_next, x, denoised, calls=1)


def _moved(x: Tensor, known: Known, sigma_next: float, solver_type: str, arrived: Tensor | None) -> Tensor:
    """From x at the newest known level to sigma_next; corrected where the prediction there is known already.

    Integrates exactly, in ln(sigma), the polynomial through the predictions. One difference alone is weighted with
    B(h) / 2 instead, the paper's choice for which there are two B(h).
    """
    sigma, newest = known[0]
    h = math.log(sigma / sigma_next)
    others = [(math.log(sigma / level) / h, prediction) for level, prediction in known[1:]]
    if arrived is not None:
        others.append((1.0, arrived))
    ratios = [ratio for ratio, _ in others]
    if len(others) == 1:
        found = [(h if solver_type == "bh1" else -math.expm1(-h)) / 2]
    else:
        moments = [-math.expm1(-h)]  # of the fractions of the step, under its exponential
        for k in range(1, len(others) + 1):
            moments.append(1 - k / h * moments[-1])
        found = weights(ratios, moments[1:])
    moved = toward(newest, x, sigma_next / sigma)
    for weight, (ratio, prediction) in zip(found, others, strict=True):
        moved = moved + weight / ratio * (prediction - newest)
    return moved
