"""The few numbers that every schedule is made of. Imports no numpy, so that a preset's schedule is checked at once."""

import math
from collections.abc import Sequence

Table = Sequence[float]
"""The noise levels a model was trained on, ascending."""

Levels = tuple[float, ...]
"""The n + 1 noise levels of n steps, descending."""


def ramp(n: int) -> list[float]:
    """Shares from 1 to 0, n of them, evenly spaced; 1 alone for n = 1."""
    return [1 - i / (n - 1) for i in range(n)] if n > 1 else [1.0]


def between(values: Sequence[float], place: float) -> float:
    """The value at a fractional index in 0 .. len - 1, linear between its two neighbours."""
    below = min(int(place), len(values) - 2)
    share = place - below
    return (1 - share) * values[below] + share * values[below + 1]


def between_logs(values: Sequence[float], places: Sequence[float]) -> list[float]:
    """The values at fractional indices, linear in their logarithm between two neighbours."""
    logs = [math.log(value) for value in values]
    return [math.exp(between(logs, place)) for place in places]
