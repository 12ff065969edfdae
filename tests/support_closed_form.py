"""Denoisers with a known answer: what the best possible network would say for data whose law is simple."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.integrate import solve_ivp

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.types import Noise, Prediction, Step


@dataclass
class Gaussian:
    """Data ~ N(mean, std^2): the exact denoiser, and where its equation takes any x. Counts its calls."""

    std: float = 0.7
    mean: float = 0.0
    calls: int = 0

    def __call__(self, x: Any, sigma: float) -> Prediction:
        self.calls += 1
        return Prediction((x * self.std**2 + self.mean * sigma**2) / (self.std**2 + sigma**2))

    def solution(self, x: Any, sigma: float, sigma_end: float) -> Any:
        """Where dx/dsigma = (x - denoised) / sigma takes x from sigma to sigma_end."""
        return self.mean + (x - self.mean) * math.sqrt((self.std**2 + sigma_end**2) / (self.std**2 + sigma**2))


@dataclass
class TwoPeaks:
    """Data ~ half N(mean, std^2), half N(-mean, std^2): the exact denoiser of a law that is not linear in x."""

    std: float = 0.5
    mean: float = 1.0
    levels: list[float] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, sigma: float) -> Prediction:
        self.levels.append(sigma)
        total = self.std**2 + sigma**2
        peak = self.mean * torch.tanh(self.mean * x / total)
        return Prediction((x * self.std**2 + peak * sigma**2) / total)


def solved(law: Any, x: torch.Tensor, sigma: float, sigma_end: float) -> torch.Tensor:
    """Where dx/dsigma = (x - denoised) / sigma takes a vector from sigma to sigma_end > 0, by scipy."""

    def slope(t: float, y: Any) -> Any:
        return law(torch.from_numpy(y), math.exp(-t)).denoised.numpy() - y

    times = -math.log(sigma), -math.log(sigma_end)
    found = solve_ivp(slope, times, x.numpy(), method="DOP853", rtol=1e-12, atol=1e-14)
    return torch.from_numpy(found.y[:, -1])


class Silence:
    """A `Noise` for samplers that must not ask for any."""

    def __call__(self) -> torch.Tensor:
        raise AssertionError("noise was drawn")

    def between(self, sigma: float, sigma_next: float) -> torch.Tensor:
        raise AssertionError(f"noise was drawn between {sigma} and {sigma_next}")


silence = Silence()


@dataclass
class Counted:
    """Hands on another `Noise` and counts the draws; without one, every draw is the number 0."""

    noise: Noise | None = None
    draws: int = 0

    def __call__(self) -> Any:
        self.draws += 1
        return self.noise() if self.noise else 0.0

    def between(self, sigma: float, sigma_next: float) -> Any:
        self.draws += 1
        return self.noise.between(sigma, sigma_next) if self.noise else 0.0


def steps(
    name: str, denoise: Any, x: Any, sigmas: Sequence[float], noise: Noise = silence, **options: float
) -> list[Step]:
    """All steps of a sampler of the table."""
    return list(SAMPLERS[name].fn(denoise, x, sigmas, noise=noise, **options))


def deterministic(name: str) -> dict[str, float]:
    """The options under which a sampler adds no noise and solves the equation."""
    none = {"eta": 0.0, "restarts": 0}
    return {option: value for option, value in none.items() if option in SAMPLERS[name].options}


def legacy_ddpm(n: int) -> tuple[float, ...]:
    """The n + 1 levels of the published default."""
    return resolve_sigmas(DiscretizationConfig(), n, DenoiserConfig())


def karras_levels(n: int, high: float = 14.6, low: float = 0.03, rho: float = 7.0) -> list[float]:
    """n + 1 levels evenly spaced in sigma^(1/rho), in double precision; the last is `low`."""
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return [(top + i / n * (bottom - top)) ** rho for i in range(n + 1)]


def log_levels(n: int, high: float = 14.6, low: float = 0.03) -> list[float]:
    """n + 1 levels evenly spaced in ln(sigma), in double precision; the last is `low`."""
    return [high * (low / high) ** (i / n) for i in range(n + 1)]
