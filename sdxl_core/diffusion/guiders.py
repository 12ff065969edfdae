"""Guidance: how the prompt and its opposite are combined into one `denoise`."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdxl_core.config import GuiderConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.errors import UsageError
from sdxl_core.types import Conditioning, Denoise, Network, Prediction


class Guider(Protocol):
    """Makes a `denoise` out of a network and what the pictures show."""

    def bind(self, denoiser: Denoiser, network: Network, cond: Conditioning, uncond: Conditioning | None) -> Denoise:
        """Tie everything but (x, sigma) down; cond and uncond have one row a picture.

        Raises:
            UsageError: cond and uncond cannot share a batch.
        """


@dataclass(frozen=True, slots=True)
class Identity:
    """No guidance: one network call of batch b a prediction; uncond is not looked at."""

    def bind(self, denoiser: Denoiser, network: Network, cond: Conditioning, uncond: Conditioning | None) -> Denoise:
        """See `Guider.bind`."""

        def denoise(x: Tensor, sigma: float) -> Prediction:
            return Prediction(denoiser(network, x, sigma, cond))

        return denoise


@dataclass(frozen=True, slots=True)
class VanillaCFG:
    """uncond + scale (cond - uncond) on the clean latent; one network call of batch 2b, uncond rows first.

    Args:
        scale: 0 gives the unconditional prediction; 1 the conditional one, for a call of batch b; more moves away
            from uncond; less than 0 moves to the opposite of the prompt.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 with w = scale - 1.
    """

    scale: float

    def bind(self, denoiser: Denoiser, network: Network, cond: Conditioning, uncond: Conditioning | None) -> Denoise:
        """See `Guider.bind`; uncond may be None when scale is 1.

        Raises:
            UsageError: the two differ in token count, or only one has a concat part.
            ValueError: uncond is missing.
        """
        if self.scale == 1:
            return Identity().bind(denoiser, network, cond, None)
        if uncond is None:
            raise ValueError(f"guidance at scale {self.scale} needs an unconditional conditioning")
        both = _doubled(cond, uncond)

        def denoise(x: Tensor, sigma: float) -> Prediction:
            u, c = denoiser(network, torch.cat([x, x]), sigma, both).chunk(2)
            return Prediction(u + self.scale * (c - u), u)

        return denoise


def build_guider(config: GuiderConfig) -> Guider:
    """The guider that a recipe names."""
    return Identity() if config.name == "identity" else VanillaCFG(config.scale)


def _doubled(cond: Conditioning, uncond: Conditioning) -> Conditioning:
    tokens, negative_tokens = cond.crossattn.shape[1], uncond.crossattn.shape[1]
    if tokens != negative_tokens:
        raise UsageError(
            f"the prompt has {tokens} tokens and the negative prompt {negative_tokens}; guidance needs as many in both"
        )
    if (cond.concat is None) != (uncond.concat is None):
        raise UsageError("only one of the prompt and the negative prompt comes with a picture condition")
    return Conditioning.cat([uncond, cond])
