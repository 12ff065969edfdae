"""Schedules that need only the lowest and highest noise level: a formula leads from one to the other.

Every function is (table, n, *, options) -> n + 1 levels, descending: `table` holds the model's levels, ascending, and
n is at least 1. One step starts at the highest level, where a formula would divide by n - 1.
"""

import math
from collections.abc import Sequence

from sdxl_core.diffusion.schedules.incomplete_beta import beta_quantile
from sdxl_core.diffusion.schedules.ramps import Levels, Table, ramp
from sdxl_core.errors import ScheduleError


def edm(
    table: Table, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 3.0
) -> Levels:
    """Evenly spaced in sigma^(1/rho), rho 3, between the model's ends; SDXL's are 0.0292 and 14.6146 as published."""
    from sdxl_core.diffusion.discretization import SIGMA_MAX, SIGMA_MIN  # numpy is kept off the start-up path

    low, high = _ends(table)
    if (round(low, 4), round(high, 4)) == (SIGMA_MIN, SIGMA_MAX):
        low, high = SIGMA_MIN, SIGMA_MAX
    return _powers(n, low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max, rho)


def karras(
    table: Table, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7.0
) -> Levels:
    """Evenly spaced in sigma^(1/rho), rho 7, between the model's ends: more levels at low noise."""
    return _powers(n, *_range(table, sigma_min, sigma_max), rho)


def exponential(table: Table, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Levels:
    """Evenly spaced in ln(sigma)."""
    return polyexponential(table, n, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    table: Table, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 1.0
) -> Levels:
    """Evenly spaced in (ln(sigma) - ln(lowest))^(1/rho); rho 1 is exponential."""
    low, high = _range(table, sigma_min, sigma_max)
    return _ending([low * (high / low) ** share**rho for share in ramp(n)])


def kl_optimal(table: Table, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Levels:
    """Evenly spaced in arctan(sigma): least KL divergence for data of unit variance."""
    low, high = _range(table, sigma_min, sigma_max)
    return _ending(_arctan(ramp(n), low, high))


def kl_optimal_a1111(table: Table, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Levels:
    """As kl_optimal over n + 1 levels: ends at the lowest level and never at 0, so a little noise stays."""
    low, high = _range(table, sigma_min, sigma_max)
    return tuple(_arctan(ramp(n + 1), low, high))


def beta_a1111(
    table: Table,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    alpha: float = 0.6,
    beta: float = 0.6,
) -> Levels:
    """Quantiles of the beta distribution as sigma itself, not as timesteps: hardly a level below 1."""
    low, high = _range(table, sigma_min, sigma_max)
    return _ending([low + beta_quantile(share, alpha, beta) * (high - low) for share in ramp(n)])


def laplace(
    table: Table,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    mu: float = 0.0,
    beta: float = 0.5,
) -> Levels:
    """Quantiles of a Laplace distribution of ln(sigma), cut at the ends: most levels around e^mu."""
    low, high = _range(table, sigma_min, sigma_max)
    logs = []
    for share in ramp(n):
        tail = beta * math.log(1 - abs(2 * share - 1) + 1e-5)  # the original's guard against ln(0)
        logs.append(mu + tail if share < 0.5 else mu - tail)
    return _ending([math.exp(min(max(log, math.log(low)), math.log(high))) for log in logs])


def vp(table: Table, n: int, *, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3) -> Levels:
    """The continuous variance-preserving schedule: its highest level, 152, is far beyond what SDXL has seen."""
    times = [eps_s + (1 - eps_s) * share for share in ramp(n)]
    try:
        return _ending([math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t)) for t in times])
    except OverflowError:
        raise ScheduleError(f"beta_d {beta_d:g} and beta_min {beta_min:g} are too large") from None


def linear_quadratic(table: Table, n: int, *, threshold: float = 0.025) -> Levels:
    """Down by a share `threshold` in n // 2 straight steps, then quadratically to 0; made for video models."""
    highest = _ends(table)[1]
    linear = n // 2
    if linear == 0:
        return (highest, 0.0)
    bend = 1 - threshold * n / linear
    shares = [threshold * i / linear + bend * (max(i - linear, 0) / (n - linear)) ** 2 for i in range(n)]
    return _ending([highest * (1 - share) for share in shares])


def bong_tangent(table: Table, n: int, *, pivot: float = 0.6, slope: float = 0.2) -> Levels:
    """Two arctan curves that meet half-way between the ends, after a share `pivot` of the steps."""
    low, high = _ends(table)
    if n == 1:
        return (high, 0.0)
    steps = n + 2
    turn = int(steps * pivot)
    slope = slope * 40 / steps
    middle = low + (high - low) / 2
    first = _arctan_curve(range(-turn, 0), slope, high, middle)
    second = _arctan_curve(range(steps - turn), slope, middle, low)
    return _ending([*first[:-1], *second[:-1]])


def _ending(levels: list[float]) -> Levels:
    return (*levels, 0.0)


def _powers(n: int, low: float, high: float, rho: float) -> Levels:
    from sdxl_core.diffusion.discretization import edm  # numpy is kept off the start-up path

    return edm(n, low, high, rho)


def _arctan(shares: Sequence[float], low: float, high: float) -> list[float]:
    return [math.tan(share * math.atan(high) + (1 - share) * math.atan(low)) for share in shares]


def _arctan_curve(steps: Sequence[int], slope: float, start: float, end: float) -> list[float]:
    """An arctan of the steps, stretched to lead from start to end."""
    if len(steps) == 1:
        return [start]
    first, *_, last = curve = [-math.atan(slope * step) for step in steps]
    return [end + (start - end) * (height - last) / (first - last) for height in curve]


def _ends(table: Table) -> tuple[float, float]:
    return table[0], table[-1]


def _range(table: Table, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The ends of a list: as given, else the model's."""
    low, high = _ends(table)
    low, high = low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
    if not 0 < low < high:
        raise ScheduleError(
            f"sigma_min {low:g} and sigma_max {high:g} must be positive and rise",
            hint=f"the model was trained on {table[0]:g} to {table[-1]:g}",
        )
    return low, high
