"""Training of the first stage: reconstruction and a small KL term."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.training.config import AutoencoderLossConfig, TrainConfig
from sdxl_core.training.data import BucketedDraw, Picture, load_crop, nearest_bucket


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

    def finish(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The averaged weights, with latents brought to mean 0 and deviation 1 in every channel.

        A weak KL term leaves channels of unlike size, and one scale factor cannot mend that; the two 1x1
        convolutions around the latent can, and decoded pictures stay the same.
        """
        with torch.no_grad():
            for name, value in self.modules.named_parameters():
                value.copy_(weights[name])
        # Spread over the folder, which may be sorted by subject.
        stride = -(-len(self.pictures) // self.loss_config.standardize_over)
        standardize_latents(self.model, self.pictures[::stride], self.draw, self.device)
        return dict(self.modules.named_parameters())


@torch.no_grad()
def standardize_latents(
    model: AutoencoderKL, pictures: Sequence[Picture], draw: BucketedDraw, device: torch.device
) -> None:
    """Fold mean and deviation of the latents of `pictures` into quant_conv and post_quant_conv, in place.

    decode(encode(image)) is unchanged, and so is the posterior relative to its new scale.
    """
    scale = model.config.scale_factor
    means = []
    for picture in pictures:
        bucket = nearest_bucket(picture.size, list(draw.members))
        image = load_crop(picture, bucket, torch.Generator().manual_seed(0)).image
        means.append(model.moments(image[None].to(device))[0][0].flatten(1) * scale)
    latents = torch.cat(means, dim=1).double()
    mean, std = latents.mean(1).float(), latents.std(1).float()
    z = model.config.z_channels
    # latent' = (latent - mean) / std: rows of the mean scaled and shifted, rows of the log-variance shifted.
    into, out_of = model.quant_conv, model.post_quant_conv
    assert into.bias is not None
    assert out_of.bias is not None
    into.weight[:z] /= std[:, None, None, None]
    into.bias[:z] = (into.bias[:z] - mean / scale) / std
    into.bias[z:] -= 2 * std.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ (mean / scale)
    out_of.weight *= std[None, :, None, None]
