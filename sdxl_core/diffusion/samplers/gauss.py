"""Integrals of smooth functions, for the weights that have no closed form."""

from collections.abc import Callable
from functools import cache

POINTS = 32


def integral(f: Callable[[float], float], low: float, high: float) -> float:
    """The integral of f from low to high by Gauss-Legendre quadrature: exact but for rounding where f is smooth.

    f is a polynomial of degree 63 or less, or near one: it may change by a factor of some 10^9 between the ends.
    """
    half = (high - low) / 2
    return half * sum(weight * f(low + half * (1 + node)) for node, weight in _rule())


@cache
def _rule() -> list[tuple[float, float]]:
    from numpy.polynomial.legendre import leggauss  # slow to import, and few samplers need it

    nodes, weights = leggauss(POINTS)
    return list(zip(nodes.tolist(), weights.tolist(), strict=True))
