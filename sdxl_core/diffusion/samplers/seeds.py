"""SEEDS: Runge-Kutta methods of the reverse diffusion whose stages share one path of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.samplers.moves import diffusion_step, phi_2, toward
from sdxl_core.types import Denoise, Noise, Step

if TYPE_CHECKING:
    from torch import Tensor


def seeds_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    solver_type: str = "phi_1",
) -> Iterator[Step]:
    """SEEDS-2: stochastic, two model calls a step, the second at the share r of the step in ln(sigma).

    A step to level 0 makes one call. With eta 0 the method is deterministic and of second order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: two draws from the path a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; see `diffusion_step`.
        s_noise: standard deviation of the fresh noise.
        r: where the second call is, above 0 to 1.
        solver_type: how the line through the two predictions is integrated: "phi_1" takes its value in the middle of
            the step, "phi_2" integrates it exactly.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Gonzalez et al. 2023, arXiv:2305.14267, in data prediction; eta as in ComfyUI.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        carried = _Carried(noise, eta, s_noise, sigma)
        middle = sigma ** (1 - r) * sigma_next**r
        ratio, _ = diffusion_step(sigma, middle, eta)
        second = denoise(toward(denoised, x, ratio) + carried.to(middle), middle).denoised
        ratio, _ = diffusion_step(sigma, sigma_next, eta)
        weight = (1 - ratio) / 2 if solver_type == "phi_1" else phi_2((1 + eta) * math.log(sigma / sigma_next))
        x = toward(denoised, x, ratio) + weight / r * (second - denoised) + carried.to(sigma_next)
        yield Step(i, sigma_next, x, second, calls=2)


def seeds_3(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """SEEDS-3: stochastic, three model calls a step, at 0, 1/3 and 2/3 of it in ln(sigma).

    A step to level 0 makes one call. With eta 0 the method is deterministic and of third order.

    Args:
        denoise: see `Denoise`.
        x: (b, c, h, w) float32 latent at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the last may be 0.
        noise: three draws from the path a step, none for a step to level 0 or with eta 0.
        eta: share of fresh noise, 0 or more; see `diffusion_step`.
        s_noise: standard deviation of the fresh noise.

    Yields:
        n steps; the last one's x is the sample.

    Raises:
        ScheduleError: sigmas has fewer than two levels or does not decrease.

    Source: Gonzalez et al. 2023, arXiv:2305.14267, in data prediction; eta as in ComfyUI.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).denoised
        if sigma_next == 0:
            yield Step(i, sigma_next, denoised, denoised, calls=1)
            continue
        carried = _Carried(noise, eta, s_noise, sigma)
        latest, at = denoised, 1.0  # `at` matters only once the latest prediction is another than the first
        for to in (1 / 3, 2 / 3, 1.0):
            level = sigma_next if to == 1 else sigma ** (1 - to) * sigma_next**to
            ratio, _ = diffusion_step(sigma, level, eta)
            weight = phi_2((1 + eta) * math.log(sigma / level)) * to / at
            stage = toward(denoised, x, ratio) + weight * (latest - denoised) + carried.to(level)
            if to < 1:
                latest, at = denoise(stage, level).denoised, to
        x = stage
        yield Step(i, sigma_next, x, latest, calls=3)


@dataclass(slots=True)
class _Carried:
    """The noise that the stages of one step share: what was added before shrinks as x does, and more is added.

    Args:
        noise: the pictures' paths.
        eta: share of fresh noise.
        s_noise: its standard deviation.
        level: where it was last brought to.
        value: what has been added by then.
    """

    noise: Noise
    eta: float
    s_noise: float
    level: float
    value: Tensor | float = 0.0

    def to(self, level: float) -> Tensor | float:
        """Bring it down to a level, and give what there is then."""
        ratio, spread = diffusion_step(self.level, level, self.eta)
        if spread > 0:
            self.value = ratio * self.value + self.s_noise * spread * self.noise.between(self.level, level)
        self.level = level
        return self.value
