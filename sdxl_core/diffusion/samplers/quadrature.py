"""Weights of multistep methods: what an integral makes of the polynomial through values at given nodes."""

from collections.abc import Sequence


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
