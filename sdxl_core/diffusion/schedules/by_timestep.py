"""Schedules that choose places in the model's table of noise levels.

Every function is (table, n, *, options) -> n + 1 levels, descending: `table` holds the model's levels, ascending, and
n is at least 1. Where the originals disagree about n = 1, all start at the highest level here.
"""

import math
from collections.abc import Iterable, Sequence

from sdxl_core.diffusion.schedules.incomplete_beta import beta_quantile
from sdxl_core.diffusion.schedules.ramps import Levels, Table, between, between_logs, ramp
from sdxl_core.errors import ScheduleError

TURBO_STEPS = 10
TURBO_STRIDE = 100


def legacy_ddpm(table: Table, n: int) -> Levels:
    """Evenly spaced timesteps, cut to whole numbers, from the highest level; the published SDXL default."""
    from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps  # numpy is kept off the start-up path

    return _at(table, legacy_ddpm_timesteps(n, len(table)))


def normal(table: Table, n: int) -> Levels:
    """Evenly spaced timesteps over the whole table, both ends included, interpolated in ln(sigma)."""
    return _between(table, [share * (len(table) - 1) for share in ramp(n)])


def simple(table: Table, n: int) -> Levels:
    """Every (1000 / n)th level of the table from its top, places cut to whole numbers."""
    return _at(table, (len(table) - 1 - int(i * (len(table) / n)) for i in range(n)))


def sgm_uniform(table: Table, n: int) -> Levels:
    """As normal over n + 1 timesteps with the lowest left out: legacy_ddpm without the cut to whole numbers."""
    return _between(table, [share * (len(table) - 1) for share in ramp(n + 1)[:-1]])


def ddim_uniform(table: Table, n: int) -> Levels:
    """Timesteps 1 + k (1000 // n): never the highest level; ComfyUI takes n + 1 steps where n does not divide 1000."""
    return leading(table, n)


def leading(table: Table, n: int, *, steps_offset: int = 1) -> Levels:
    """Timesteps k (1000 // n) + steps_offset: never starts at the highest level."""
    timesteps = [k * (len(table) // n) + steps_offset for k in reversed(range(n))]
    if timesteps[0] >= len(table):
        raise ScheduleError(
            f"timestep {timesteps[0]} is beyond the last of the model's table, {len(table) - 1}",
            hint="take fewer steps, or the trailing schedule",
        )
    return _at(table, timesteps)


def leading_multistep(table: Table, n: int) -> Levels:
    """As leading for n + 1 steps without the lowest: what diffusers' multistep schedulers call leading."""
    return (*leading(table, n + 1)[:-2], 0.0)


def trailing(table: Table, n: int) -> Levels:
    """Timesteps round(1000 - k 1000 / n) - 1, from the highest level; what few-step models were distilled on."""
    # The stride as numpy.arange takes it, one rounding off: where a half is rounded, that decides.
    stride = len(table) - (len(table) - len(table) / n)
    return _at(table, (round(len(table) - k * stride) - 1 for k in range(n)))


def linspace(table: Table, n: int) -> Levels:
    """As normal, but interpolated in sigma itself."""
    return (*(between(table, share * (len(table) - 1)) for share in ramp(n)), 0.0)


def linspace_multistep(table: Table, n: int) -> Levels:
    """As linspace for n + 1 steps, rounded, without the lowest: what diffusers' multistep schedulers call linspace."""
    return _at(table, (round(share * (len(table) - 1)) for share in ramp(n + 1)[:-1]))


def turbo(table: Table, n: int) -> Levels:
    """The first n of the timesteps 999, 899, ..., 99: SDXL Turbo's, at most 10 steps."""
    if n > TURBO_STEPS:
        raise ScheduleError(
            f"the turbo schedule has {TURBO_STEPS} levels, not {n}", hint=f"take at most {TURBO_STEPS} steps"
        )
    return _at(table, (len(table) - 1 - k * TURBO_STRIDE * len(table) // 1000 for k in range(n)))


def turbo_forge(table: Table, n: int) -> Levels:
    """Timesteps round(k 1000 / n - 1): as trailing but for the rounding of halves."""
    return _at(table, (max(round(k * (len(table) / n) - 1), 0) for k in range(n, 0, -1)))


def lcm(table: Table, n: int, *, original_steps: int = 50) -> Levels:
    """Out of the 50 timesteps that latent consistency models were distilled on, 999, 979, ..., 19, evenly n."""
    if n > original_steps:
        raise ScheduleError(
            f"the lcm schedule chooses from {original_steps} levels, so it cannot give {n}",
            hint=f"take at most {original_steps} steps, or set original_steps",
        )
    stride = len(table) // original_steps
    return _at(table, (stride * (original_steps - i * original_steps // n) - 1 for i in range(n)))


def beta(table: Table, n: int, *, alpha: float = 0.6, beta: float = 0.6) -> Levels:
    """Quantiles of the beta distribution as timesteps, rounded: more levels at both ends."""
    last = len(table) - 1
    return _at(table, (round(beta_quantile(1 - i / n, alpha, beta) * last) for i in range(n)))


def beta_continuous(table: Table, n: int, *, alpha: float = 0.6, beta: float = 0.6) -> Levels:
    """As beta without the rounding: interpolated in ln(sigma), so that any n gives n levels."""
    last = len(table) - 1
    return _between(table, [beta_quantile(1 - i / n, alpha, beta) * last for i in range(n)])


def smoothstep(table: Table, n: int) -> Levels:
    """Timesteps 999 (3 u^2 - 2 u^3) for u = 1 - k / n, rounded: more levels at both ends."""
    shares = [1 - k / n for k in range(n)]
    return _at(table, (math.floor(u * u * (3 - 2 * u) * (len(table) - 1) + 0.5) for u in shares))


def _at(table: Table, timesteps: Iterable[int]) -> Levels:
    return (*(float(table[t]) for t in timesteps), 0.0)


def _between(table: Table, timesteps: Sequence[float]) -> Levels:
    """Levels at fractional timesteps, linear in ln(sigma)."""
    return (*between_logs(table, timesteps), 0.0)
