"""Data whose best possible network is known in closed form: a mixture of Gaussians spread as latents are."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdxl_core.types import Prediction

DIMENSIONS = 64
COMPONENTS = 8
ASKED_FOR = 2  # components that the "prompt" names
FALL = 1.0  # spread of coordinate i ~ (i + 1)^-FALL, as amplitudes fall with the frequency in pictures
BETWEEN = 0.8  # share of a coordinate's deviation that is between components; the rest is within them
SEED = 0


@dataclass(frozen=True, slots=True)
class Mixture:
    """Equal shares of N(means[k], diag(stds^2)), of mean square 1 over all coordinates; guided towards some of them.

    Args:
        means: (k, d).
        stds: (d,), the same in every component.
        asked_for: the condition: the component is one of the first so many.
        scale: of classifier-free guidance; 1 asks for all components, without guidance.
    """

    means: Tensor
    stds: Tensor
    asked_for: int = ASKED_FOR
    scale: float = 1.0
    variances: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "variances", self.stds**2)

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        """The expected data of the noisy (..., d) x."""
        total = self.variances + sigma**2
        scaled = self.means / total
        fits = x @ scaled.T - (self.means * scaled).sum(dim=1) / 2
        denoised = self._expected(fits, self.means, x, total)
        if self.scale != 1:
            cond = self._expected(fits[..., : self.asked_for], self.means[: self.asked_for], x, total)
            denoised = denoised + self.scale * (cond - denoised)
        return Prediction(denoised)

    def _expected(self, fits: Tensor, means: Tensor, x: Tensor, total: Tensor) -> Tensor:
        nearest = torch.softmax(fits, dim=-1) @ means
        return nearest + self.variances / total * (x - nearest)

    def draw(self, n: int, seed: int) -> Tensor:
        """(n, d) data, as many of every component as of every other."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.arange(n) % len(self.means)
        noise = torch.randn((n, len(self.stds)), generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds * noise


def build_mixture(scale: float = 1.0) -> Mixture:
    """The mixture of the figures; float64."""
    generator = torch.Generator().manual_seed(SEED)
    spread = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -FALL
    spread = spread / spread.square().mean().sqrt()
    means = torch.randn((COMPONENTS, DIMENSIONS), generator=generator, dtype=torch.float64)
    means = means - means.mean(dim=0)
    means = means / means.square().mean(dim=0).sqrt()  # exactly BETWEEN of every coordinate's deviation
    return Mixture(BETWEEN * spread * means, math.sqrt(1 - BETWEEN**2) * spread, scale=scale)
