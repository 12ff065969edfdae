"""Weights of multistep methods: what an integral makes of the polynomial through values at given nodes."""

from collections.abc import Callable, Sequence
from functools import cache

POINTS = 32


def weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The w with sum_j w_j nodes_j^k = moments_k for every k.

    Where moments_k is the integral of v^k, sum_j w_j values_j is the integral of the polynomial in v through the values
    at the nodes.

    Args:
        nodes: all different.
        moments: as many.
    """
    found = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # 1 at this node, 0 at the others; lowest power first
        for k, other in enumerate(nodes):
            if k != j:
                raised, kept = [0.0, *polynomial], [*polynomial, 0.0]
                polynomial = [(a - other * b) / (node - other) for a, b in zip(raised, kept, strict=True)]
        found.append(sum(c * m for c, m in zip(polynomial, moments, strict=True)))
    return found


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
