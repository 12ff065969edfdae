"""How often training draws each noise level, as densities over log-SNR."""

import math
from collections.abc import Sequence

from sdxl_cli.chart import Density
from sdxl_core.config import DenoiserConfig

_P_MEAN, _P_STD = -1.2, 1.2


def training_densities(denoiser: DenoiserConfig, levels: Sequence[float]) -> list[Density]:
    """What a model of this kind is usually trained on, filled, and the other usual choice, dashed.

    Args:
        denoiser: of the model.
        levels: the model's own, ascending.
    """
    over_range = denoiser.scaling in ("edm", "edm_v")
    densities = [Density(f"training: ln(sigma) ~ N({_P_MEAN:g}, {_P_STD:g})", _log_normal(levels), over_range)]
    if not over_range:  # the table of a model of a range is no more than its ends
        densities.insert(0, Density(f"training: uniform over {len(levels)} timesteps", _uniform(levels), True))
    return densities


def _uniform(levels: Sequence[float]) -> list[tuple[float, float]]:
    """Each index of the table as likely: the density at a level follows from the distance of its neighbours."""
    points = []
    for i, sigma in enumerate(levels):
        below, above = max(i - 1, 0), min(i + 1, len(levels) - 1)
        gap = 2 * math.log(levels[above] / levels[below])
        points.append((sigma, (above - below) / len(levels) / gap))
    return points


def _log_normal(levels: Sequence[float]) -> list[tuple[float, float]]:
    """The density of EDM training, 200 points over the range. Source: arXiv:2206.00364, table 1."""
    low, high = math.log(levels[0]), math.log(levels[-1])
    logs = [low + (high - low) * i / 199 for i in range(200)]
    height = 1 / (2 * _P_STD * math.sqrt(2 * math.pi))  # of log-SNR, which is twice ln(sigma)
    return [(math.exp(log), height * math.exp(-(((log - _P_MEAN) / _P_STD) ** 2) / 2)) for log in logs]
