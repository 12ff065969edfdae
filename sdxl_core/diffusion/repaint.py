"""Keeping a part of a picture while the rest is drawn, and editing one that the network is shown."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.guiders import Prompts
from sdxl_core.types import Conditioning, Denoise, Network, Prediction


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What stays of pictures during a walk, a row a picture.

    Args:
        latent: (b, c, h, w) of the pictures.
        eps: (b, c, h, w) standard normal, the noise that the kept part carries at every level.
        mask: (b, 1, h, w), 1 where everything is drawn, 0 where all is kept. A cell between is drawn in that share of
            the steps, from the end: a level of 0.3 is a strength of 0.3.
    """

    latent: Tensor
    eps: Tensor
    mask: Tensor

    def start(self, x: Tensor, sigma: float) -> Tensor:
        """The latents x (b, c, h, w) at the first level, with the noised pictures where nothing is drawn yet."""
        return torch.where(self.mask >= 1, x, self._noised(sigma))

    def around(self, denoise: Denoise, sigmas: Sequence[float]) -> Denoise:
        """A `denoise` that sees the noised pictures, and predicts the pictures, where they are kept at that level.

        Works with every sampler: to one that takes the prediction as it is, the kept part walks straight to the
        picture.

        Args:
            denoise: of the whole.
            sigmas: n + 1 decreasing levels of the walk, whose steps the mask counts.

        Source: for masks of two values as in most programs; between them Levin and Fried 2023, arXiv:2306.00950.
        """
        rising = [-sigma for sigma in sigmas]
        steps = len(sigmas) - 1

        def kept(x: Tensor, sigma: float) -> Prediction:
            step = min(bisect_left(rising, -sigma), steps - 1)
            drawn = self.mask >= 1 - step / steps - 1e-6
            prediction = denoise(torch.where(drawn, x, self._noised(sigma)), sigma)
            uncond = prediction.uncond
            return Prediction(
                torch.where(drawn, prediction.denoised, self.latent),
                None if uncond is None else torch.where(drawn, uncond, self.latent),
            )

        return kept

    def _noised(self, sigma: float) -> Tensor:
        return self.latent + sigma * self.eps


def edit_denoise(denoiser: Denoiser, network: Network, prompts: Prompts, scale: float, image_scale: float) -> Denoise:
    """Guidance by words and by a picture: one network call of batch 3b a prediction.

    Args:
        denoiser: around the network.
        network: takes the picture beside the noisy latent.
        prompts: the instruction and the negative prompt, each with the picture as its `concat`.
        scale: how far the words count.
        image_scale: how far the picture counts.

    Source: Brooks et al. 2022, arXiv:2211.09800, equation 3.
    """
    (cond,), uncond = prompts.parts, prompts.uncond
    assert uncond is not None
    assert uncond.concat is not None
    blank = replace(uncond, concat=torch.zeros_like(uncond.concat))
    everything = Conditioning.cat([blank, uncond, cond])

    def denoise(x: Tensor, sigma: float) -> Prediction:
        nothing, picture, words = denoiser(network, torch.cat([x, x, x]), sigma, everything).chunk(3)
        guided = nothing + image_scale * (picture - nothing) + scale * (words - picture)
        return Prediction(guided, nothing)

    return denoise
