"""Training of the network on cached latents, with frozen text towers."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.config import FirstStageConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.losses import StandardDiffusionLoss
from sdxl_core.diffusion.sigma_sampling import DiscreteSampling, EdmSampling, SigmaSampling
from sdxl_core.diffusion.weighting import WEIGHTINGS, Weighting, edm_weighting, min_snr_weighting
from sdxl_core.models.autoencoder import scale_latent
from sdxl_core.models.unet import UNet
from sdxl_core.training.config import DiffusionLossConfig, TrainConfig
from sdxl_core.training.data import BucketedDraw, Picture
from sdxl_core.training.latents import LatentCache
from sdxl_core.types import Conditioning


def build_loss(config: DiffusionLossConfig, denoiser: Denoiser) -> StandardDiffusionLoss:
    """The loss that a training preset describes."""
    sampling: SigmaSampling
    if config.sigma_sampling == "discrete":
        first, last = config.index_range or (0, len(denoiser.table))
        sampling = DiscreteSampling(denoiser.table, first, last)
    else:
        sampling = EdmSampling(config.p_mean, config.p_std)
    weighting: Weighting = WEIGHTINGS[config.weighting]
    if config.weighting == "min_snr":
        weighting = partial(min_snr_weighting, gamma=config.min_snr_gamma)
    if config.weighting == "edm":
        weighting = partial(edm_weighting, sigma_data=denoiser.config.sigma_data)
    return StandardDiffusionLoss(sampling, weighting, config.distance, config.offset_noise)


class DiffusionStage:
    """Teaches the network to denoise; the conditioner and the latents stay as they are.

    Size, crop, target and score conditioning are those of the pictures (Podell et al. 2023, section 2.2). A
    `caption_dropout` share of the pictures is trained with all text zeroed at once, which is what an empty
    negative prompt gives at sampling; the embedders' own ucg_rate applies besides.
    """

    def __init__(
        self,
        network: UNet,
        conditioner: Conditioner,
        denoiser: Denoiser,
        pictures: Sequence[Picture],
        cache: LatentCache,
        first_stage: FirstStageConfig,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        if not isinstance(config.loss, DiffusionLossConfig):
            raise TypeError("a diffusion stage needs a diffusion loss")
        # On a CPU, group norm with few channels a group takes up to 70 times as long with channels last.
        self.layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last
        network = network.to(memory_format=self.layout)
        self.modules = nn.ModuleDict({"model": nn.ModuleDict({"diffusion_model": network})})
        self.conditioner, self.denoiser = conditioner.requires_grad_(False), denoiser
        self.pictures, self.cache, self.first_stage, self.device = pictures, cache, first_stage, device
        self.caption_dropout = config.loss.caption_dropout
        self.diffusion_loss = build_loss(config.loss, denoiser)
        self.draw = BucketedDraw([p.size for p in pictures], config.data.buckets, config.data.batch_size)
        self.run_network = torch.compile(network) if config.compile else network

    def _network(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        x_in = x_in.contiguous(memory_format=self.layout)
        out: Tensor = self.run_network(x_in, c_noise, cond.crossattn, cond.vector)
        return out

    def condition(self, indexes: Tensor, generator: torch.Generator) -> Conditioning:
        """Conditioning of the pictures at `indexes`, with dropout drawn from the generator."""
        sizes = self.cache.sizes[indexes]
        requests = [
            ConditionRequest(
                prompt=self.pictures[i].text,
                original_size=(int(s[0]), int(s[1])),
                crop_coords_top_left=(int(s[2]), int(s[3])),
                target_size=(int(s[4]), int(s[5])),
                aesthetic_score=self.pictures[i].aesthetic_score,
            )
            for i, s in zip(indexes.tolist(), sizes, strict=True)
        ]
        drop = torch.rand(len(indexes), generator=generator) < self.caption_dropout
        with torch.no_grad():
            text = [features.dropped(drop) for features in self.conditioner.encode_text(requests)]
            return self.conditioner.assemble(text, self.conditioner.numbers(requests), generator=generator)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean loss of one batch, every latent drawn anew from its posterior."""
        _, indexes = self.draw(generator)
        # Widened before they are stacked: autocast on the CPU refuses to join float16.
        moments = torch.stack([self.cache.moments[i].float() for i in indexes.tolist()])
        mean, std = moments.chunk(2, dim=1)
        encoding = mean + std * torch.randn(mean.shape, generator=generator)
        x0 = scale_latent(encoding, self.first_stage).to(self.device)
        cond = self.condition(indexes, generator)
        losses = self.diffusion_loss(self._network, self.denoiser, x0, cond, generator)
        return losses.mean(), {}

    def finish(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The averaged weights as they are."""
        return weights
