"""Preconditioning: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), F being the raw network.

Every formula works on a Python float (sampling: no device is asked) and on a (b,) tensor (training).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from torch import Tensor

Level = TypeVar("Level", float, Tensor)


@dataclass(frozen=True, slots=True)
class Coefficients(Generic[Level]):
    """The factors around the network at one noise level, in the form of sigma: a float, or (b,)."""

    c_skip: Level
    c_out: Level
    c_in: Level


def eps_scaling(sigma: Level, sigma_data: float) -> Coefficients[Level]:
    """The network predicts the noise: x0 = x - sigma F. sigma_data is taken as 1.

    Source: the published SDXL config; Ho et al. 2020, arXiv:2006.11239, in the form x = x0 + sigma eps.
    """
    return Coefficients(sigma * 0 + 1, -sigma, 1 / (sigma**2 + 1) ** 0.5)


def v_scaling(sigma: Level, sigma_data: float) -> Coefficients[Level]:
    """The network predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0. sigma_data is taken as 1.

    Source: Salimans and Ho 2022, arXiv:2202.00512, with alpha_bar = 1 / (sigma^2 + 1).
    """
    total = sigma**2 + 1
    return Coefficients(1 / total, -sigma / total**0.5, 1 / total**0.5)


def edm_scaling(sigma: Level, sigma_data: float) -> Coefficients[Level]:
    """Input and target of the network have unit variance when the data's standard deviation is sigma_data.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    total = sigma**2 + sigma_data**2
    return Coefficients(sigma_data**2 / total, sigma * sigma_data / total**0.5, 1 / total**0.5)


def flow_scaling(sigma: Level, sigma_data: float) -> Coefficients[Level]:
    """The network predicts eps - x0 on the straight line x_t = (1 - t) x0 + t eps. sigma_data is taken as 1.

    With sigma = t / (1 - t) the line is x_t = (x0 + sigma eps) / (1 + sigma), and x0 = x_t - t F.

    Source: Liu et al. 2022, arXiv:2209.03003, equation 1, with time turned round so that t = 1 is noise.
    """
    total = sigma + 1
    return Coefficients(1 / total, -sigma / total, 1 / total)


def continuous_c_noise(sigma: Level) -> Level:
    """ln(sigma) / 4, what a network without a table of levels is told; sigma > 0. Source: as `edm_scaling`."""
    if isinstance(sigma, Tensor):
        return sigma.log() / 4
    return math.log(sigma) / 4


def flow_c_noise(sigma: Level) -> Level:
    """1000 t, what a network of flows is told; t = sigma / (1 + sigma). Source: as `flow_scaling`."""
    return 1000 * sigma / (1 + sigma)


Scaling = Callable[[Any, float], Coefficients[Any]]
"""(sigma, sigma_data) -> coefficients in the form of sigma."""

SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {"eps": eps_scaling, "v": v_scaling, "edm": edm_scaling, "edm_v": v_scaling, "flow": flow_scaling}
)

LEVEL_TOLD: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"edm": continuous_c_noise, "edm_v": continuous_c_noise, "flow": flow_c_noise}
)
"""What a network without a table of levels is told of sigma; those of the other scalings are told a place in theirs."""
