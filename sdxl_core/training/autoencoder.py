"""Training of the first stage: reconstruction and a small KL term."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.training.config import AutoencoderLossConfig, TrainConfig
from sdxl_core.training.data import BucketedDraw, Picture, load_crop


class AutoencoderStage:
    """Teaches the autoencoder to give pictures back.

    loss = mean |decoded - image| (or its square) + kl_weight x mean KL(N(mean, var) || N(0, 1)).
    Source: Rombach et al. 2022, arXiv:2112.10752, without the adversarial part.
    """

    def __init__(
        self, model: AutoencoderKL, pictures: Sequence[Picture], config: TrainConfig, device: torch.device
    ) -> None:
        if not isinstance(config.loss, AutoencoderLossConfig):
            raise TypeError("an autoencoder stage needs an autoencoder loss")
        self.loss_config = config.loss
        self.modules = nn.ModuleDict({"first_stage_model": model})
        self.pictures, self.device = pictures, device
        self.draw = BucketedDraw([p.size for p in pictures], config.data.buckets, config.data.batch_size)
        self.forward = torch.compile(self._forward) if config.compile else self._forward
        self.model = model

    def _forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.model.moments(image)
        scale = self.model.config.scale_factor
        decoded = self.model.decode((mean + torch.exp(0.5 * logvar) * noise) * scale)
        return decoded, mean, logvar

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reconstruct one batch; logs the peak signal-to-noise ratio in dB of the range [-1, 1]."""
        bucket, indexes = self.draw(generator)
        crops = [load_crop(self.pictures[i], bucket, generator).image for i in indexes.tolist()]
        image = torch.stack(crops).to(self.device, memory_format=torch.channels_last)
        shape = (len(crops), self.model.config.z_channels, *(side // self.model.config.factor for side in bucket))
        noise = torch.randn(shape, generator=generator).to(self.device)
        decoded, mean, logvar = self.forward(image, noise)
        error = decoded.float() - image
        square = error.square().mean()
        reconstruction = error.abs().mean() if self.loss_config.reconstruction == "l1" else square
        mean, logvar = mean.float(), logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        psnr = 10 * torch.log10(4 / square.detach())
        std = mean.detach().std()
        return reconstruction + self.loss_config.kl_weight * kl, {"psnr": psnr, "kl": kl.detach(), "latent_std": std}
