"""What every list of noise levels must be. Imports no numpy, so that a preset's sampler can be checked at once."""

import math
from collections.abc import Sequence

from sdxl_core.errors import ScheduleError


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
