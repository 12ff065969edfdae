"""SA-Solver: Adams methods of the reverse diffusion, a predictor and a corrector, with noise on some of the levels."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import diffusion_step
from sdxl_core.diffusion.samplers.quadrature import integral, weights
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor

# Noise is added on the levels of the middle three fifths of SDXL's timesteps: those at 799.2 and 199.8.
S_TMAX = 5.0924
S_TMIN = 0.5712


def sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    s_tmin: float = S_TMIN,
    s_tmax: float = S_TMAX,
    predictor_order: int = 3,
    corrector_order: int = 4,
    simple_order_2: bool = False,
) -> Iterator[Step]:
    """SA-Solver: stochastic on its middle levels, one model call a step.

    Predicts x at the next level from the predictions before; the one made there corrects x before it goes on. The first
    steps, and the last where the list ends at 0, use fewer predictions. With eta 0 the method is deterministic and of
    the order of its corrector.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: one draw from the path a step to a level within [s_tmin, s_tmax], none with eta 0.
        eta: the paper's tau on those levels, 0 or more; its square is that of `diffusion_step`.
        s_noise: standard deviation of the fresh noise.
        s_tmin: lowest level that noise is added on.
        s_tmax: highest level that noise is added on.
        predictor_order: predictions that the predictor uses, 1 to 4.
        corrector_order: predictions that the corrector uses, the newest included, 1 to 4; 0 corrects nothing.
        simple_order_2: the paper's simpler weights where two predictions are used; of the same order.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Xue et al. 2023, arXiv:2309.05019, algorithm 1 in data prediction; defaults as in ComfyUI.
    """
    rule = _Rule(eta, s_noise, s_tmin, s_tmax, predictor_order, corrector_order, simple_order_2)
    yield from _walk(denoise, x, sigmas, noise, rule, again=False)


def sa_solver_pece(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    s_tmin: float = S_TMIN,
    s_tmax: float = S_TMAX,
    predictor_order: int = 3,
    corrector_order: int = 4,
    simple_order_2: bool = False,
) -> Iterator[Step]:
    """SA-Solver that asks again at each corrected x: stochastic on its middle levels, two model calls a step.

    The first step makes one call. Arguments, yields, errors and order are those of `sa_solver`.

    Source: Xue et al. 2023, arXiv:2309.05019, in PECE mode.
    """
    rule = _Rule(eta, s_noise, s_tmin, s_tmax, predictor_order, corrector_order, simple_order_2)
    yield from _walk(denoise, x, sigmas, noise, rule, again=True)


@dataclass(frozen=True, slots=True)
class _Rule:
    """The options of both samplers, named as there."""

    eta: float
    s_noise: float
    s_tmin: float
    s_tmax: float
    predictor_order: int
    corrector_order: int
    simple_order_2: bool

    def weights(self, nodes: Sequence[float], sigma: float, sigma_next: float, eta: float) -> list[float]:
        """Of the predictions made at the nodes, newest first, in the step from sigma to sigma_next.

        They integrate the polynomial in ln(sigma) through the predictions against the kernel of the reverse diffusion.
        """
        h = math.log(sigma / sigma_next)
        at = [math.log(sigma / node) / h for node in nodes]  # the step goes from 0 to 1
        rate = (1 + eta) * h
        if self.simple_order_2 and len(nodes) == 2:
            whole = -math.expm1(-rate)
            older = rate / 2 / at[1] if at[0] == 0 else whole - rate / 2
            return [whole - older, older]

        def moment(k: int) -> float:
            return rate * integral(lambda share: math.exp(rate * (share - 1)) * share**k, 0.0, 1.0)

        return weights(at, [moment(k) for k in range(len(at))])


def _walk(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, rule: _Rule, again: bool
) -> Iterator[Step]:
    """Both samplers; `again` asks for a prediction at the corrected x, too."""
    check_sigmas(sigmas)
    n, to_zero = len(sigmas) - 1, sigmas[-1] == 0
    predictions: deque[Tensor] = deque(maxlen=4)  # newest first
    carried, eta = x, 0.0  # of the step before: its x and noise brought to its end, and how stochastic it was
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised, calls = denoise(x, sigma).denoised, 1
        predictions.appendleft(denoised)
        order = min(rule.corrector_order, len(predictions), n - i if to_zero else n)
        if i > 0 and order > 0 and (again or sigma_next > 0):
            correction = rule.weights(_newest(sigmas, i, order), sigmas[i - 1], sigma, eta)
            x = carried + _sum(correction, predictions)
            if again:
                denoised, calls = denoise(x, sigma).denoised, 2
                predictions[0] = denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls)
            continue
        eta = rule.eta**2 if rule.s_tmin <= sigma_next <= rule.s_tmax else 0.0
        ratio, spread = diffusion_step(sigma, sigma_next, eta)
        carried = ratio * x
        if spread > 0:
            carried = carried + rule.s_noise * spread * noise.between(sigma, sigma_next)
        order = min(rule.predictor_order, len(predictions), n - 1 - i if to_zero else n)
        x = carried + _sum(rule.weights(_newest(sigmas, i, order), sigma, sigma_next, eta), predictions)
        yield Step(i, sigma_next, x, denoised, calls)


def _newest(sigmas: Sequence[float], i: int, order: int) -> list[float]:
    """The levels of the last predictions at step i, newest first."""
    return [sigmas[i - j] for j in range(order)]


def _sum(by: Sequence[float], predictions: Iterable[Tensor]) -> Tensor:
    first, *others = (weight * prediction for weight, prediction in zip(by, predictions, strict=False))
    return sum(others, start=first)
