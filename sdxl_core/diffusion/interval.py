"""Where guidance is on, as noise levels. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdxl_core.errors import ScheduleError
from sdxl_core.guider_config import IntervalConfig


@dataclass(frozen=True, slots=True)
class Window:
    """The noise levels in (low, high].

    Guidance depends on the level alone and not on the step that asks, so that what a sampler solves stays one equation.
    """

    low: float = 0.0
    high: float = math.inf

    def __contains__(self, sigma: float) -> bool:
        return self.low < sigma <= self.high

    def steps(self, sigmas: Sequence[float]) -> int:
        """How many steps of a list of levels start inside."""
        return sum(sigma in self for sigma in sigmas[:-1])


EVERYWHERE = Window()


def resolve_window(interval: IntervalConfig | None, sigmas: Sequence[float]) -> Window:
    """The levels that an interval means on a list of n + 1 decreasing levels.

    Step i goes from sigmas[i - 1] down to sigmas[i]; what a sampler asks for at both belongs to the step that starts
    there. A first step has no upper end, so that churn, which raises the level, does not leave it. Percentages are of
    the number of steps and rounded down.

    Raises:
        ScheduleError: no step starts inside.

    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """
    if interval is None:
        return EVERYWHERE
    steps = len(sigmas) - 1
    low, high = interval.low, interval.high
    if interval.unit == "sigma":
        window = Window(low, high)
    else:
        first, last = int(low) - 1, min(int(high), steps)
        if interval.unit == "percent":
            first, last = (int(share * steps / 100 + 1e-9) for share in (low, high))
        inside = first < last
        top = math.inf if first == 0 else sigmas[min(first, steps)]
        window = Window(sigmas[last], top) if inside else Window(0.0, 0.0)
    if not window.steps(sigmas):
        words = {"sigma": "sigma", "percent": "percent of the steps", "step": "step"}[interval.unit]
        raise ScheduleError(
            f"the guidance interval {low:g} to {high:g} ({words}) holds none of the {steps} steps",
            hint=f"they start at sigma {sigmas[0]:.4g} and the last at {sigmas[-2]:.4g}",
        )
    return window
