"""Linear multistep."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.quadrature import weights
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def lms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """Adams-Bashforth on uneven levels: deterministic, fourth order, one model call a step.

    Integrates the polynomial in sigma through the last `order` slopes; the first steps, with fewer slopes known, are of
    lower order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: not drawn from.
        order: slopes used, 1 (then this is `euler`) to 4.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section III.5.
    """
    check_sigmas(sigmas)
    slopes: deque[Tensor] = deque(maxlen=order)  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        slopes.appendleft((x - denoised) / sigma)
        nodes = [sigmas[i - j] for j in range(len(slopes))]
        for weight, slope in zip(adams_weights(nodes, sigma_next), slopes, strict=True):
            x = x + weight * slope
        yield Step(i, sigma_next, x, denoised, calls=1)


def adams_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Weights that integrate, from nodes[0] to end, the polynomial through values given at the nodes."""
    length = end - nodes[0]
    moments = [length ** (k + 1) / (k + 1) for k in range(len(nodes))]
    return weights([node - nodes[0] for node in nodes], moments)
