"""Where guidance is on, as noise levels, and what it costs there. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdxl_core.errors import ScheduleError
from sdxl_core.guider_config import GuiderConfig, IntervalConfig


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


def resolve_still(config: GuiderConfig, sigmas: Sequence[float]) -> float:
    """The level above which the zero-init of `cfg_zero_star` leaves x where it is.

    Raises:
        ScheduleError: no step would move.
    """
    first = 0 if config.cfg_zero_star is None else config.cfg_zero_star.zero_init
    if first >= len(sigmas) - 1:
        raise ScheduleError(f"zero_init {first} leaves none of the {len(sigmas) - 1} steps")
    return sigmas[first] if first else math.inf


@dataclass(frozen=True, slots=True)
class Cost:
    """Rows of the network that one model call takes for each picture.

    Args:
        config: what guides.
        window: levels at which it does.
        still: level above which the network is not asked.
        uncond: whether the unconditional side is run inside the window.
        parts: prompts that AND joins.
    """

    config: GuiderConfig
    window: Window = EVERYWHERE
    still: float = math.inf
    uncond: bool = True
    parts: int = 1

    def at(self, sigma: float) -> int:
        """The rows at a level."""
        config = self.config
        if sigma > self.still:
            return 0
        if sigma not in self.window:
            return self.parts
        sides = self.parts + self.uncond + (config.perp_neg is not None)
        worse = self.parts * sum(method is not None and method.scale != 0 for method in (config.pag, config.seg))
        again = (1 if self.uncond else self.parts) * (config.sag is not None and config.sag.scale != 0)
        return sides + worse + again


def resolve_cost(config: GuiderConfig, sigmas: Sequence[float], *, keep_uncond: bool, parts: int = 1) -> Cost:
    """The cost of a guider on a list of n + 1 decreasing levels.

    Args:
        config: what guides.
        sigmas: whose steps an interval counts.
        keep_uncond: a CFG++ sampler wants the unconditional prediction, needed or not.
        parts: prompts that AND joins.

    Raises:
        ScheduleError: an interval without a step, or no step that moves.
    """
    window, still = resolve_window(config.interval, sigmas), resolve_still(config, sigmas)
    return Cost(config, window, still, config.runs_uncond(keep_uncond), parts)
