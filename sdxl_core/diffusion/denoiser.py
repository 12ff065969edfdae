"""The denoiser: turns a raw network into a prediction of the clean latent."""

import math

import numpy as np
import torch
from torch import Tensor

from sdxl_core.compat import Snap
from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.discretization import sigma_to_fractional_timestep, sigma_to_timestep, trained_levels
from sdxl_core.diffusion.scaling import LEVEL_TOLD, SCALINGS
from sdxl_core.types import Conditioning, Network


class Denoiser:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise, cond); costs one call of the network.

    With the eps or v scaling the network is told a timestep, a place in the table of trained levels; what that is for
    a level between two of them is a matter of `snap`. With the other scalings there is no table to go by: the network
    is told the level itself, see `LEVEL_TOLD`.

    Args:
        config: scaling and table of levels.
        snap: level: as in the original engine, sigma is first replaced by the nearest of the trained levels, and the
            timestep is that level's index. index: sigma is used as it is, and the timestep is the index of the level
            nearest in ln(sigma). none: sigma is used as it is, and the timestep is a fraction between two levels.

    Attributes:
        table: (num_idx,) the trained levels, ascending, float32, on the CPU.
    """

    def __init__(self, config: DenoiserConfig, snap: Snap = "level") -> None:
        self.config = config
        self.snap = snap
        self._told = LEVEL_TOLD.get(config.scaling)
        self._levels = trained_levels(config)
        self._logs = np.log(self._levels)
        self.table = torch.from_numpy(self._levels)
        self._scaling = SCALINGS[config.scaling]

    def snapping(self, snap: Snap) -> "Denoiser":
        """The same denoiser with another `snap`."""
        return self if snap == self.snap else Denoiser(self.config, snap)

    def __call__(self, network: Network, x: Tensor, sigma: float | Tensor, cond: Conditioning) -> Tensor:
        """Predict the clean latent; the arithmetic around the network runs in the dtype of x.

        Args:
            network: (x_in, c_noise, cond) -> (b, c, h, w) in any dtype; sees `cond.concat` joined to x_in.
            x: (b, c, h, w) noisy latent, float32 or float64.
            sigma: its noise level > 0, one for all (float: the device is never waited for) or (b,), one each.
            cond: what the pictures show, b rows.

        Returns:
            (b, c, h, w) predicted x0, dtype of x.

        Raises:
            ValueError: sigma has another batch size than x.
        """
        c_noise, level = self._per_sample(x, sigma) if isinstance(sigma, Tensor) else self._for_all(x, sigma)
        c = self._scaling(level, self.config.sigma_data)
        x_in = x * c.c_in
        if cond.concat is not None:
            x_in = torch.cat([x_in, cond.concat.to(x.dtype)], dim=1)
        denoised: Tensor = x * c.c_skip + network(x_in, c_noise, cond).to(x.dtype) * c.c_out
        return denoised

    def _for_all(self, x: Tensor, sigma: float) -> tuple[Tensor, float]:
        """(c_noise (b,), level the scaling sees); plain Python but for filling c_noise."""
        level = sigma
        if self._told is not None:
            c_noise = self._told(sigma)
        elif self.snap == "level":
            index = sigma_to_timestep(sigma, self._levels)
            c_noise, level = index, float(self._levels[index])
        elif self.snap == "index":
            c_noise = sigma_to_timestep(math.log(sigma), self._logs)
        else:
            c_noise = sigma_to_fractional_timestep(sigma, self._levels)
        return torch.full((x.shape[0],), c_noise, dtype=x.dtype, device=x.device), level

    def _per_sample(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_noise (b,), level (b, 1, 1, 1))."""
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma has shape {tuple(sigma.shape)}, x has {x.shape[0]} rows")
        level = sigma.to(x.dtype)
        if self._told is not None:
            c_noise = self._told(level)
        elif self.snap == "none":
            fractions = [sigma_to_fractional_timestep(each, self._levels) for each in sigma.tolist()]
            c_noise = torch.tensor(fractions, dtype=x.dtype, device=x.device)
        else:
            table = self.table.to(x.device, x.dtype)
            in_logs = self.snap == "index"
            distance = level.log()[:, None] - table.log() if in_logs else level[:, None] - table
            index = distance.abs().argmin(dim=1)
            c_noise, level = index.to(x.dtype), level if in_logs else table[index]
        return c_noise, level[:, None, None, None]
