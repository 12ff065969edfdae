"""What every list of noise levels must be. Imports no numpy, so that a preset's sampler can be checked at once."""

import math
from collections.abc import Sequence

from sdxl_core.errors import ScheduleError

MOST_STEPS = 1000


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Refuse a list that no sampler can walk.

    Raises:
        ScheduleError: fewer than two levels, a level not finite or negative, or levels that do not strictly decrease.
    """
    if len(sigmas) < 2:
        raise ScheduleError(f"sampling needs at least two noise levels, not {len(sigmas)}")
    for i, sigma in enumerate(sigmas):
        if not math.isfinite(sigma) or sigma < 0:
            raise ScheduleError(f"noise level {i} is {sigma}, not a finite number of at least 0")
        if i and sigma >= sigmas[i - 1]:
            raise ScheduleError(
                f"noise levels must decrease, but level {i - 1} is {sigmas[i - 1]} and level {i} {sigma}"
            )


def steps_of_whole(steps: int, strength: float) -> int:
    """How long a schedule is whose last `strength` of the steps are so many.

    Raises:
        ScheduleError: no schedule is that long, or the strength is not in (0, 1].
    """
    check_strength(strength)
    total = max(steps, math.floor(min(steps / strength, 1e9) + 1e-9))
    if total > MOST_STEPS:
        raise ScheduleError(
            f"{steps} steps at strength {strength:g} are the end of a schedule of {total} steps, "
            f"and {MOST_STEPS} are the most",
            hint="take fewer steps or more strength",
        )
    return total


def check_strength(strength: float) -> None:
    """Refuse a share of the steps that is none.

    Raises:
        ScheduleError: it is not in (0, 1].
    """
    if not 0 < strength <= 1:
        raise ScheduleError(f"a strength must be above 0 and at most 1, not {strength}")
