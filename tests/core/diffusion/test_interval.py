import math
from typing import Any

import pytest

from sdxl_core.diffusion.interval import EVERYWHERE, Window, resolve_window
from sdxl_core.errors import ScheduleError
from sdxl_core.guider_config import IntervalConfig

LEVELS = [14.6, 9.0, 5.0, 3.0, 2.0, 1.0, 0.7, 0.4, 0.2, 0.1, 0.0]  # ten steps


def guided(levels: list[float] = LEVELS, **interval: Any) -> list[int]:
    """Which steps, counted from 1, start inside."""
    window = resolve_window(IntervalConfig(**interval), levels)
    return [i for i, sigma in enumerate(levels[:-1], 1) if sigma in window]


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        ({"low": 0.28, "high": 5.42}, [3, 4, 5, 6, 7, 8]),
        ({"low": 1.0, "high": 5.0}, [3, 4, 5]),  # open below, closed above
        ({"low": 0, "high": 100.0}, list(range(1, 11))),
        ({"unit": "step", "low": 3, "high": 5}, [3, 4, 5]),
        ({"unit": "step", "low": 1, "high": 1}, [1]),
        ({"unit": "step", "low": 9, "high": 99}, [9, 10]),
        ({"unit": "percent", "low": 20, "high": 80}, [3, 4, 5, 6, 7, 8]),
        ({"unit": "percent", "low": 0, "high": 100}, list(range(1, 11))),
        ({"unit": "percent", "low": 29, "high": 58}, [3, 4, 5]),  # int(0.29 * 10) = 2 to int(0.58 * 10) = 5
    ],
)
def test_three_ways_to_say_where(interval: dict[str, Any], steps: list[int]) -> None:
    assert guided(**interval) == steps


@pytest.mark.parametrize("n", range(1, 101))
def test_percentages_round_as_diffusers_counts_them(n: int) -> None:
    levels = [float(i) for i in range(n, -1, -1)]
    wanted = [i + 1 for i in range(n) if (n * 20) // 100 <= i < (n * 70) // 100]
    if wanted:
        assert guided(levels, unit="percent", low=20, high=70) == wanted
    else:
        with pytest.raises(ScheduleError, match="holds none"):
            guided(levels, unit="percent", low=20, high=70)


def test_no_interval_is_everywhere() -> None:
    assert resolve_window(None, LEVELS) == EVERYWHERE
    assert 1e9 in EVERYWHERE
    assert 1e-9 in EVERYWHERE


def test_churn_does_not_leave_a_window_that_begins_with_the_run() -> None:
    assert resolve_window(IntervalConfig(unit="step", low=1, high=3), LEVELS) == Window(3.0, math.inf)
    assert resolve_window(IntervalConfig(unit="step", low=2, high=3), LEVELS) == Window(3.0, 9.0)


@pytest.mark.parametrize(
    "interval",
    [
        {"low": 20.0, "high": 30.0},
        {"low": 0.01, "high": 0.05},
        {"unit": "step", "low": 11, "high": 20},
        {"unit": "percent", "low": 1, "high": 9},
    ],
)
def test_an_interval_without_a_step_is_refused(interval: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError, match="holds none of the 10 steps") as caught:
        resolve_window(IntervalConfig(**interval), LEVELS)
    assert "14.6" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ({"low": 5.0, "high": 1.0}, "low 5 is not below high 1"),
        ({"low": 5.0, "high": 5.0}, "low 5 is not below high 5"),
        ({"unit": "step", "low": 0, "high": 4}, "whole numbers from 1"),
        ({"unit": "step", "low": 1.5, "high": 4}, "whole numbers from 1"),
        ({"unit": "percent", "low": 10, "high": 110}, "more than 100 percent"),
    ],
)
def test_what_is_no_interval(interval: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IntervalConfig(**interval)
