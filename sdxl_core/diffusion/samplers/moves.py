"""The moves that samplers are made of. Arithmetic only: x may be a tensor, an array or a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sdxl_core.types import Noise, Prediction


def toward(denoised: Tensor, x: Tensor, ratio: float) -> Tensor:
    """Denoised + ratio (x - denoised): the point where x would be at ratio times its noise level.

    With ratio = sigma_next / sigma this is the Euler step of dx/dsigma = (x - denoised) / sigma, and also the
    exponential step exp(-h) x - expm1(-h) denoised with h = ln(sigma / sigma_next). Ratio 0 gives `denoised` exactly.
    """
    return denoised + ratio * (x - denoised)


def ancestral_levels(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Split a step to sigma_next < sigma into (sigma_down, sigma_up): go down so far, then add so much noise.

    sigma_down^2 + sigma_up^2 = sigma_next^2. eta 0 adds nothing; 1 adds as much as the reverse diffusion does; more is
    limited to sigma_up = sigma_next.

    Source: Song et al. 2020, arXiv:2010.02502, equation 16, for x = x0 + sigma eps.
    """
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2)) / sigma)
    return math.sqrt(max(0.0, sigma_next**2 - up**2)), up


@dataclass(frozen=True, slots=True)
class Churn:
    """Extra noise before a step, on levels within [s_tmin, s_tmax].

    Args:
        s_churn: how much, summed over the run; a step raises its level by min(s_churn / steps, sqrt(2) - 1) of itself.
        s_tmin: lowest level that is churned.
        s_tmax: highest level that is churned.
        s_noise: standard deviation of the noise added.
        steps: steps of the run.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    steps: int

    def raised(self, x: Tensor, sigma: float, noise: Noise) -> tuple[Tensor, float]:
        """(x, level) after churning; draws no noise where nothing is added."""
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1) if self.s_tmin <= sigma <= self.s_tmax else 0.0
        if gamma <= 0:
            return x, sigma
        sigma_hat = sigma * (1 + gamma)
        return x + self.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise(), sigma_hat


def diffusion_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(ratio, spread) of a step of the reverse diffusion: x becomes toward(denoised, x, ratio) + spread * draw.

    Exact where `denoised` stays as it is. eta 0 is the deterministic step, without spread; 1 the reverse diffusion and
    the step of `ancestral_levels`; more forgets x faster.

    Source: Lu et al. 2022, arXiv:2211.01095, section 5, for x = x0 + sigma eps; eta as in k-diffusion.
    """
    h = math.log(sigma / sigma_next)
    return math.exp(-(1 + eta) * h), sigma_next * math.sqrt(-math.expm1(-2 * eta * h))


def phi_2(h: float) -> float:
    """1 - (1 - exp(-h)) / h: the weight of a change of `denoised` that grows evenly over a step of h in ln(sigma)."""
    return 1 + math.expm1(-h) / h


def unguided(prediction: Prediction) -> Tensor:
    """The unconditional prediction, which CFG++ takes the noise of; where no guidance ran, the only one there is."""
    return prediction.denoised if prediction.uncond is None else prediction.uncond
