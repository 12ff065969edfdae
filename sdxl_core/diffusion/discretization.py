"""Noise levels: the table a network was trained on, and the lists that sampling walks through.

numpy and Python floats only, so that plans and `sdxl sigmas` need no torch. The published lists were made by
float32 torch arithmetic; the same roundings are made here in the same places, so every digit agrees.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sdxl_core.compat import StrengthRule
from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.levels import check_sigmas, check_strength
from sdxl_core.errors import ScheduleError

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Real = TypeVar("Real", np.float32, np.float64)

NUM_IDX = 1000
LINEAR_START = 0.00085
LINEAR_END = 0.0120
SIGMA_MIN = 0.0292
SIGMA_MAX = 14.6146
RHO = 3.0

TERMINAL_ALPHA_BARS: Mapping[str, float] = MappingProxyType({"comfy": 4.8973451890853435e-08, "diffusers": 2.0**-24})
"""What programs put in place of the last alpha_bar of a zero-terminal-SNR table, which is 0: sigma 4518.76 and 4096."""

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType({"edm": (0.002, 80.0), "edm_v": (0.002, 120.0)})
"""Scaling -> the trained range of the published model of its kind (Playground v2.5, CosXL)."""

FLOW_LAST = 0.9
"""A flow's last time is that of step num_idx - 1 and this share of a step: at the whole step sigma is infinite."""


def linear_betas(n: int = NUM_IDX, linear_start: float = LINEAR_START, linear_end: float = LINEAR_END) -> Float64:
    """The n betas of the schedule called linear: interpolated as square roots, then squared.

    Raises:
        ScheduleError: n < 1, or not 0 < linear_start <= linear_end < 1.

    Source: the published SDXL config (0.00085 to 0.0120 over 1000 steps).
    """
    if n < 1:
        raise ScheduleError(f"a noise table needs at least one level, not {n}")
    if not 0 < linear_start <= linear_end < 1:
        raise ScheduleError(f"linear_start {linear_start} and linear_end {linear_end} must rise between 0 and 1")
    start, end = math.sqrt(linear_start), math.sqrt(linear_end)
    roots = _linspace(start, end, n, np.float64)
    return roots * roots


def alpha_bars(betas: Float64) -> Float64:
    """The share of signal (as variance) left after each step: the running product of 1 - beta."""
    return np.cumprod(1.0 - betas, dtype=np.float64)


def legacy_ddpm_table(
    num_idx: int = NUM_IDX, linear_start: float = LINEAR_START, linear_end: float = LINEAR_END
) -> Float32:
    """All num_idx noise levels, ascending, float32: sigma = sqrt((1 - alpha_bar) / alpha_bar).

    SDXL's run from 0.0292 at timestep 0 to 14.6146 at timestep 999.

    Raises:
        ScheduleError: as `linear_betas`.
    """
    return _sigmas_of(alpha_bars(linear_betas(num_idx, linear_start, linear_end)))


def zero_terminal_alpha_bars(kept: Float64, terminal: float) -> Float64:
    """Shift sqrt(alpha_bar) by its last value, then stretch it so that the first stays: the last level is pure noise.

    Args:
        kept: (n,) descending alpha_bars.
        terminal: stands in for the last one, which comes out as 0; see `TERMINAL_ALPHA_BARS`.

    Raises:
        ScheduleError: fewer than two levels.

    Source: Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    if len(kept) < 2:
        raise ScheduleError(f"a table of {len(kept)} level cannot be stretched to zero terminal SNR")
    roots = np.sqrt(kept)
    stretched: Float64 = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    stretched[-1] = terminal
    return stretched


def trained_levels(denoiser: DenoiserConfig) -> Float32:
    """The num_idx noise levels of a model, ascending, float32: what every schedule of the model is made of.

    eps, v: the levels of the betas, see `legacy_ddpm_table`, stretched to zero terminal SNR where that was trained.
    edm, edm_v: evenly spaced in ln(sigma) over the trained range; the network knows every level between them.
    flow: the share of noise t is evenly spaced from 1 / num_idx to almost 1. The straight line
        x_t = (1 - t) x0 + t eps is (1 - t) times x0 + sigma eps with sigma = t / (1 - t), and the usual shift of time,
        t -> shift t / (1 + (shift - 1) t), is shift x sigma.

    Raises:
        ScheduleError: as `linear_betas`, or a range that does not rise.

    Source of the flow: Liu et al. 2022, arXiv:2209.03003; of its shift: Esser et al. 2024, arXiv:2403.03206.
    """
    if denoiser.scaling in RANGES:
        low, high = trained_range(denoiser)
        return np.exp(_linspace(math.log(low), math.log(high), denoiser.num_idx, np.float64)).astype(np.float32)
    if denoiser.scaling == "flow":
        steps = np.arange(1, denoiser.num_idx + 1, dtype=np.float64)
        steps[-1] = denoiser.num_idx - 1 + FLOW_LAST
        return (denoiser.shift * steps / (denoiser.num_idx - steps)).astype(np.float32)
    if denoiser.zero_terminal_snr is None:
        return legacy_ddpm_table(denoiser.num_idx, denoiser.linear_start, denoiser.linear_end)
    kept = alpha_bars(linear_betas(denoiser.num_idx, denoiser.linear_start, denoiser.linear_end))
    return _sigmas_of(zero_terminal_alpha_bars(kept, TERMINAL_ALPHA_BARS[denoiser.zero_terminal_snr]))


def trained_range(denoiser: DenoiserConfig) -> tuple[float, float]:
    """Lowest and highest level of a model; for a range exactly as it was given.

    Raises:
        ScheduleError: as `trained_levels`.
    """
    if denoiser.scaling not in RANGES:
        table = trained_levels(denoiser)
        return float(table[0]), float(table[-1])
    low, high = RANGES[denoiser.scaling]
    low, high = denoiser.sigma_min or low, denoiser.sigma_max or high
    if low >= high:
        raise ScheduleError(f"the model's trained range is empty: sigma_min {low:g} is not below sigma_max {high:g}")
    return low, high


def _sigmas_of(kept: Float64) -> Float32:
    return np.sqrt(((1.0 - kept) / kept).astype(np.float32))


def legacy_ddpm_timesteps(n: int, num_idx: int = NUM_IDX) -> tuple[int, ...]:
    """The n table indices that legacy DDPM sampling visits, descending; the first is always num_idx - 1.

    Raises:
        ScheduleError: n < 1 or n > num_idx.
    """
    _check_steps(n, num_idx)
    return tuple(int(t) for t in np.linspace(num_idx - 1, 0, n, endpoint=False))


def edm(n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> tuple[float, ...]:
    """Walk from sigma_max to sigma_min in n levels evenly spaced in sigma^(1/rho), then 0: n + 1 decreasing floats.

    rho 1 is a straight line; a higher rho puts more levels at low noise. n = 1 gives sigma_max alone.

    Raises:
        ScheduleError: n < 1 or n > 1000, not 0 < sigma_min < sigma_max, rho <= 0, a value not finite, or levels so
            close that float32 cannot tell them apart.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    _check_steps(n, NUM_IDX)
    if not (math.isfinite(sigma_max) and 0 < sigma_min < sigma_max):
        raise ScheduleError(
            f"sigma_min {sigma_min} and sigma_max {sigma_max} must be positive, finite and rise",
            hint=f"SDXL was trained on {SIGMA_MIN} to {SIGMA_MAX}",
        )
    if not (math.isfinite(rho) and rho > 0):
        raise ScheduleError(f"rho must be a positive number, not {rho}", hint="3 or 7 are usual")
    try:
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    except OverflowError:
        raise ScheduleError(f"rho {rho} is too small for sigma_max {sigma_max}", hint="3 or 7 are usual") from None
    with np.errstate(over="ignore", invalid="ignore"):  # check_sigmas refuses what comes of it
        bent = np.float32(high) + _linspace(0.0, 1.0, n, np.float32) * np.float32(low - high)
        levels = (bent.astype(np.float64) ** rho).astype(np.float32)
    sigmas = (*(float(s) for s in levels), 0.0)
    check_sigmas(sigmas)
    return sigmas


def sigma_to_timestep(sigma: float, table: Sequence[float] | Float32) -> int:
    """Index of the level nearest to sigma by absolute difference; of two as near, the lower.

    Args:
        sigma: a noise level; beyond the ends of the table the end is nearest.
        table: ascending levels.
    """
    above = bisect_left(table, sigma)
    if above == 0:
        return 0
    if above == len(table) or sigma - float(table[above - 1]) <= float(table[above]) - sigma:
        return above - 1
    return above


def sigma_to_fractional_timestep(sigma: float, table: Sequence[float] | Float32) -> float:
    """Where sigma lies among the levels: linear in ln(sigma) between its two neighbours, the ends beyond the ends.

    Args:
        sigma: a noise level > 0.
        table: ascending levels.

    Source: the inverse of the interpolation that the k-diffusion family of samplers uses.
    """
    above = bisect_left(table, sigma)
    if above == 0:
        return 0.0
    if above == len(table):
        return float(len(table) - 1)
    low, high = math.log(float(table[above - 1])), math.log(float(table[above]))
    return above - 1 + (math.log(sigma) - low) / (high - low)


def last_levels(sigmas: Sequence[float], strength: float, rule: StrengthRule = "share") -> tuple[float, ...]:
    """The levels of the last `strength` of the steps: what a run walks that starts from a picture.

    Args:
        sigmas: n + 1 decreasing levels.
        strength: above 0, at most 1; the steps are n x strength, rounded down, and at least one.
        rule: how programs round, see `Conventions`; of an exact schedule see `steps_of_whole`.

    Raises:
        ScheduleError: strength is not in (0, 1].
    """
    check_strength(strength)
    n = len(sigmas) - 1
    steps = {
        "share": math.floor(n * strength + 1e-9),  # 0.29 x 100 is 28.999999999999996
        "truncated": int(n * strength),
        "below_one": int(n * min(strength, 0.999)),
        "levels": int((n + 1) * strength) - 1,
    }[rule]
    return tuple(sigmas[-max(steps, 1) - 1 :])


def _check_steps(n: int, most: int) -> None:
    if n < 1 or n > most:
        raise ScheduleError(f"the number of steps must be between 1 and {most}, not {n}")


def _linspace(start: float, end: float, n: int, real: type[Real]) -> NDArray[Real]:
    """The n values from start to end, equal in every bit to torch.linspace on the CPU.

    torch counts each half from its own end and rounds step * i + start once (a fused multiply-add). Exact integer
    fractions give that rounding on every machine; float32 values come through float64, which holds them exactly.
    """
    step = float((real(end) - real(start)) / real(max(n - 1, 1)))
    step_top, step_bottom = step.as_integer_ratio()

    def fused(base: float, i: int) -> float:
        top, bottom = base.as_integer_ratio()
        return (top * step_bottom + step_top * i * bottom) / (bottom * step_bottom)

    half = max(n // 2, 1)
    return np.array([fused(start, i) if i < half else fused(end, i - (n - 1)) for i in range(n)], dtype=real)
