"""What `sdxl sigmas` says of every noise level, as plain numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdxl_core.compat import Snap
from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.discretization import (
    TERMINAL_ALPHA_BARS,
    alpha_bars,
    linear_betas,
    sigma_to_fractional_timestep,
    sigma_to_timestep,
    zero_terminal_alpha_bars,
)
from sdxl_core.errors import UsageError


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """One level of a list.

    Args:
        index: its place, from 0.
        sigma: the level.
        timestep: what the network is told there: a place in its table, or ln(sigma) / 4 where it has none, or for a
            flow 1000 times the share of noise. None at level 0, where no network is asked.
        alpha_bar: the share of signal, 1 / (1 + sigma^2).
        log_snr: ln(1 / sigma^2); None at level 0.
        log_snr_step: what it gains to the next level; None where that is infinite or there is none.
        snr_db: the same signal-to-noise ratio in decibels.
    """

    index: int
    sigma: float
    timestep: int | float | None
    alpha_bar: float
    log_snr: float | None
    log_snr_step: float | None
    snr_db: float | None


def noise_rows(
    sigmas: Sequence[float], denoiser: DenoiserConfig, levels: Sequence[float], snap: Snap = "level"
) -> list[NoiseRow]:
    """A row for every level of a list.

    Args:
        sigmas: decreasing.
        denoiser: of the model that walks them.
        levels: the model's own, ascending.
        snap: what the network is told between two of them, see `Conventions`.
    """
    logs = [0.0 - 2 * math.log(sigma) if sigma > 0 else None for sigma in sigmas]  # 0 - 0 is 0, where -2 * 0 is -0
    rows = []
    for index, (sigma, log) in enumerate(zip(sigmas, logs, strict=True)):
        following = logs[index + 1] if index + 1 < len(logs) else None
        rows.append(
            NoiseRow(
                index=index,
                sigma=sigma,
                timestep=_told(sigma, denoiser, levels, snap) if sigma > 0 else None,
                alpha_bar=1 / (1 + sigma * sigma),
                log_snr=log,
                log_snr_step=None if log is None or following is None else following - log,
                snr_db=None if log is None else 10 * log / math.log(10),
            )
        )
    return rows


def _told(sigma: float, denoiser: DenoiserConfig, levels: Sequence[float], snap: Snap) -> int | float:
    if denoiser.scaling in ("edm", "edm_v"):
        return math.log(sigma) / 4
    if denoiser.scaling == "flow":
        return 1000 * sigma / (1 + sigma)
    if snap == "none":
        return sigma_to_fractional_timestep(sigma, levels)
    if snap == "index":
        return sigma_to_timestep(math.log(sigma), [math.log(level) for level in levels])
    return sigma_to_timestep(sigma, levels)


@dataclass(frozen=True, slots=True)
class BetaRow:
    """One timestep of the table that a network was trained on; `beta` is the variance that its step adds."""

    timestep: int
    beta: float
    alpha_bar: float
    sigma: float
    log_snr: float


def beta_rows(denoiser: DenoiserConfig) -> list[BetaRow]:
    """A row for every trained timestep, ascending.

    Raises:
        UsageError: the model has no betas.
    """
    if denoiser.scaling not in ("eps", "v"):
        raise UsageError(
            f"a network that predicts {denoiser.scaling} was trained without a beta schedule",
            hint="betas belong to the predictions eps, v, v_ztsnr and v_ztsnr_diffusers",
        )
    betas = linear_betas(denoiser.num_idx, denoiser.linear_start, denoiser.linear_end)
    kept = alpha_bars(betas)
    if denoiser.zero_terminal_snr is not None:
        kept = zero_terminal_alpha_bars(kept, TERMINAL_ALPHA_BARS[denoiser.zero_terminal_snr])
        betas[1:] = 1 - kept[1:] / kept[:-1]
    return [
        BetaRow(t, beta, share, math.sqrt((1 - share) / share), math.log(share / (1 - share)))
        for t, (beta, share) in enumerate(zip(betas.tolist(), kept.tolist(), strict=True))
    ]
