"""Diffusion exponential integrator sampler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.quadrature import weights
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def deis(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, order: int = 3) -> Iterator[Step]:
    """DEIS, polynomials in ln(sigma): deterministic, third order, one model call a step.

    Integrates the polynomial in ln(sigma) through the last `order` slopes; the first steps, with fewer slopes known,
    are of lower order, and one to level 0 is Euler's. With polynomials in sigma instead this would be `ipndm_v`.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        order: slopes used, 1 (then this is `euler`) to 3.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Zhang and Chen 2022, arXiv:2204.13902, equation 15; ln(sigma) for its t, as in diffusers.
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
        for weight, slope in zip(log_weights(nodes, sigma_next), slopes, strict=True):
            x = x + weight * slope
        yield Step(i, sigma_next, x, denoised, calls=1)


def log_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Weights that integrate over sigma, from nodes[0] to end, the polynomial in ln(sigma) through values at the nodes.

    With v = ln(sigma / nodes[0]), the integrals of v^k exp(v) follow from each other by parts.
    """
    h = math.log(end / nodes[0])
    moments = [math.expm1(h)]
    for k in range(1, len(nodes)):
        moments.append(h**k * math.exp(h) - k * moments[-1])
    return [nodes[0] * weight for weight in weights([math.log(node / nodes[0]) for node in nodes], moments)]
