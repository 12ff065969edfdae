"""Noise that belongs to a picture, not to a batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class PictureNoise:
    """Standard normal draws for a batch, row i always from picture i's own CPU generator; a `Noise`.

    A picture is therefore the same alone or in any batch, and on any device. The first draw of a seed is what
    diffusers and ComfyUI draw for that seed on the CPU.

    Args:
        seeds: one a picture.
        shape: (c, h, w) of one latent.
        device: where the draws are moved to; they are made on the CPU, in float32.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.device = torch.device(device)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def __call__(self) -> Tensor:
        """The next (b, c, h, w) draw."""
        rows = [torch.randn(self.shape, generator=g, dtype=torch.float32) for g in self._generators]
        return torch.stack(rows).to(self.device)

    def start(self, sigma: float) -> Tensor:
        """The latent a run begins with: the next draw, times sqrt(1 + sigma^2).

        The root makes the first network input have the variance of a noised latent of unit variance. Source: the
        original engine; diffusers does the same.
        """
        return self() * math.sqrt(1 + sigma**2)
