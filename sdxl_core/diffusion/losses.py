"""The training loss: noise a clean latent, denoise it, and weigh how far off the prediction is."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.sigma_sampling import SigmaSampling
from sdxl_core.diffusion.weighting import Weighting, eps_weighting
from sdxl_core.types import Conditioning, Network


@dataclass(frozen=True, slots=True)
class StandardDiffusionLoss:
    """w(sigma) x distance(D(x0 + sigma noise, sigma), x0), sigma drawn per picture.

    Args:
        sigma_sampling: where the levels come from.
        weighting: the weight of a level, on the loss of x0.
        distance: l2 (squared difference) or l1 (absolute difference).
        offset_noise: how strongly a constant per picture and channel is added to the noise, so that the network
            learns to change the mean colour (SDXL: 0.05 in its last stage).

    Source: Karras et al. 2022, arXiv:2206.00364, equation 2; offset noise as in the SDXL report, arXiv:2307.01952.
    """

    sigma_sampling: SigmaSampling
    weighting: Weighting = eps_weighting
    distance: Literal["l2", "l1"] = "l2"
    offset_noise: float = 0.0

    def __call__(
        self, network: Network, denoiser: Denoiser, x0: Tensor, cond: Conditioning, generator: torch.Generator
    ) -> Tensor:
        """Draw levels and noise from the generator and give the loss; one call of the network.

        Args:
            network: the network that learns.
            denoiser: its preconditioning.
            x0: (b, c, h, w) clean latents, float32.
            cond: b rows.
            generator: on any device; the draws are moved to x0's.

        Returns:
            (b,) losses, each a mean over its picture; not yet averaged over the batch.
        """
        sigma = self.sigma_sampling(x0.shape[0], generator).to(x0.device)
        return self.at(network, denoiser, x0, cond, sigma, self.draw_noise(x0, generator))

    def draw_noise(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Noise shaped as x0, with the offset added; its order of draws is fixed: noise, then offset."""
        noise = torch.randn(x0.shape, generator=generator, device=generator.device)
        if self.offset_noise:
            offset = torch.randn(*x0.shape[:2], 1, 1, generator=generator, device=generator.device)
            noise = noise + self.offset_noise * offset
        return noise.to(x0)

    def at(
        self, network: Network, denoiser: Denoiser, x0: Tensor, cond: Conditioning, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        """(b,) losses at given (b,) levels and (b, c, h, w) noise: nothing random, for validation and logs."""
        denoised = denoiser(network, x0 + sigma[:, None, None, None] * noise, sigma, cond)
        error = denoised - x0
        size = error.square() if self.distance == "l2" else error.abs()
        return self.weighting(sigma) * size.flatten(1).mean(dim=1)
