"""The formulas of guidance, each a function of predictions of the clean latent; rows do not see each other.

Throughout: x (b, c, h, w) the noisy latent at level sigma; cond and uncond (b, c, h, w) predictions of the clean
latent; x - prediction is sigma eps. The sums over a picture are taken in double precision.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdxl_core.diffusion.blur import low_frequencies
from sdxl_core.guider_config import ApgConfig, DynamicThresholdingConfig, RescaleConfig


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(b, 1, 1, 1) double: the inner product of each row."""
    return (a.double() * b.double()).sum(dim=(1, 2, 3), keepdim=True)


def _share(a: Tensor, b: Tensor) -> Tensor:
    """(b, 1, 1, 1): how much of b is in a, <a, b> / <b, b>; 0 where b is 0."""
    length = _dot(b, b)
    return torch.where(length > 0, _dot(a, b) / length, 0.0).to(a.dtype)


def without_shared(cond: Tensor, uncond: Tensor, negative: Tensor, weight: float) -> Tensor:
    """Cond moved away from the negative prompt, but not along what the two have in common.

    Args:
        cond: of the prompt.
        uncond: of the empty prompt, from which both directions are taken.
        negative: of the negative prompt.
        weight: how far.

    Source: Armandpour et al. 2023, arXiv:2304.04968, equation 8 (Perp-Neg).
    """
    toward, away = cond - uncond, negative - uncond
    return cond - weight * (away - _share(away, toward) * toward)


def tangential(x: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """Uncond, its score projected on the direction that the scores of both have most in common.

    That is the first right singular vector of the two scores; of two vectors it follows from their inner products.

    Source: Kwon et al. 2025, arXiv:2503.18137, algorithm 1 (TCFG).
    """
    c, u = x - cond, x - uncond
    angle = 0.5 * torch.atan2(2 * _dot(c, u), _dot(c, c) - _dot(u, u))
    of_c, of_u = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return x - of_u * (of_c * c + of_u * u)


def fitted(x: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """Uncond, its noise scaled to lie as near as it can to that of cond.

    Source: Fan et al. 2025, arXiv:2503.18886, equation 7 (CFG-Zero*); the velocity of the paper is x - prediction here.
    """
    return x - _share(x - cond, x - uncond) * (x - uncond)


@dataclass(slots=True)
class ProjectedUpdate:
    """The difference of cond and uncond, averaged over the calls of a run, limited, and turned away from cond.

    One for each run: it remembers what it has seen, row by row.

    Source: Sadat et al. 2024, arXiv:2410.02416, algorithm 1 (APG).
    """

    config: ApgConfig
    average: Tensor | None = field(default=None, init=False)

    def __call__(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """The update, (b, c, h, w), for cond + (scale - 1) update."""
        update = cond - uncond
        if self.average is not None:
            update = update + self.config.momentum * self.average
        self.average = update
        if self.config.threshold > 0:
            length = _dot(update, update).sqrt()
            update = update * (self.config.threshold / length.clamp(min=self.config.threshold)).to(update.dtype)
        return update - (1 - self.config.eta) * _share(update, cond) * cond


def by_frequency(update: Tensor, low: float, high: float) -> Tensor:
    """The update with the lower half of its frequencies times `low` and the rest times `high`.

    Source: Sadat et al. 2025, arXiv:2506.19713, algorithm 1 with two bands (FDG).
    """
    lower = low_frequencies(update)
    return high * update + (low - high) * lower


def thresholded(guided: Tensor, mild: Tensor, config: DynamicThresholdingConfig) -> Tensor:
    """Guided, every channel of every picture squeezed around its mean into the range that it has in mild.

    Args:
        guided: at the scale asked for.
        mild: the same at the scale that it shall look like.
        config: how the range is measured.

    Source: mcmonkeyprojects, sd-dynamic-thresholding, its default ways (each channel by itself, from the mean).
    """
    mean = guided.mean(dim=(2, 3), keepdim=True)
    centred, wanted = guided - mean, mild - mild.mean(dim=(2, 3), keepdim=True)
    tiny = torch.finfo(guided.dtype).tiny
    if config.measure == "std":
        squeezed = centred * (
            wanted.std(dim=(2, 3), keepdim=True) / centred.std(dim=(2, 3), keepdim=True).clamp(min=tiny)
        )
    else:
        reach = wanted.abs().amax(dim=(2, 3), keepdim=True)
        own = torch.quantile(centred.abs().flatten(2), config.percentile, dim=2)[..., None, None]
        widest = torch.maximum(reach, own).clamp(min=tiny)
        squeezed = centred.clamp(-widest, widest) / widest * reach
    return config.phi * (squeezed + mean) + (1 - config.phi) * guided


def rescaled(guided: Tensor, cond: Tensor, x: Tensor, sigma: float, config: RescaleConfig) -> Tensor:
    """Guided, its noise (or v) given the standard deviation that cond has over the picture.

    Up to a factor that cancels, eps is x - prediction, and v is x / (sigma^2 + 1) - prediction.

    Source: Lin et al. 2023, arXiv:2305.08891, equations 15 and 16.
    """
    origin = x if config.space == "eps" else x / (sigma**2 + 1)
    raw = origin - guided
    spread = (origin - cond).std(dim=(1, 2, 3), keepdim=True) / raw.std(dim=(1, 2, 3), keepdim=True)
    return origin - raw * (config.phi * spread + (1 - config.phi))
