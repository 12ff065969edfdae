"""The first stage: images to latents an eighth of their size and back (Rombach et al. 2022, KL-f8).

Parameter names are those of the published file under `first_stage_model.`
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.config import FirstStageConfig
from sdxl_core.ops.attention import Attention, sdpa
from sdxl_core.ops.layers import group_norm

_EPS = 1e-6


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; (b, c_in, h, w) -> (b, c_out, h, w)."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(c_in, _EPS, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = group_norm(c_out, _EPS, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = self.nin_shortcut(x) + h
        return out


class AttnBlock(nn.Module):
    """Self-attention over all positions with a single head as wide as the features."""

    def __init__(self, channels: int, groups: int, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.norm = group_norm(channels, _EPS, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, attention: Attention | None = None) -> Tensor:
        """Attend; another `attention` than the layer's own takes its place for this call."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = (attention or self.attention)(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(h)
        return out


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        # The published weights were trained with padding on the right and at the bottom only.
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Middle(nn.Module):
    """The lowest resolution: block, attention, block."""

    def __init__(self, channels: int, groups: int, attention: Attention) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups, attention)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor, attention: Attention | None = None) -> Tensor:
        """Walk through; see `AttnBlock` for `attention`."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x), attention))
        return out


class DownLevel(nn.Module):
    """The blocks of one resolution of the encoder; halves it at the end unless it is the last."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, *, halve: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks))
        self.downsample = Downsample(c_out) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for block in self.block:
            x = block(x)
        out: Tensor = self.downsample(x)
        return out


class UpLevel(nn.Module):
    """The blocks of one resolution of the decoder; doubles it at the end unless it is the finest."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, *, double: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks))
        self.upsample = Upsample(c_out) if double else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for block in self.block:
            x = block(x)
        out: Tensor = self.upsample(x)
        return out


class Encoder(nn.Module):
    """Image (b, in_channels, h, w) to the moments (b, 2 z_channels, h/f, w/f) before `quant_conv`."""

    def __init__(self, config: FirstStageConfig, attention: Attention) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(c_in, c_out, config.num_res_blocks, groups, halve=i + 1 < len(widths))
            for i, (c_in, c_out) in enumerate(zip([config.ch, *widths[:-1]], widths, strict=True))
        )
        self.mid = Middle(widths[-1], groups, attention)
        self.norm_out = group_norm(widths[-1], _EPS, groups)
        self.act: nn.Module = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(self.act(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """Latent (b, z_channels, h/f, w/f) after `post_quant_conv` to the image (b, out_ch, h, w)."""

    def __init__(self, config: FirstStageConfig, attention: Attention) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups, attention)
        # up.0 is the finest level, as in the published file, so the list is walked from its end.
        self.up = nn.ModuleList(
            UpLevel(c_in, c_out, config.num_res_blocks + 1, groups, double=i > 0)
            for i, (c_in, c_out) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = group_norm(widths[0], _EPS, groups)
        self.act: nn.Module = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        out: Tensor = self.conv_out(self.act(self.norm_out(h)))
        return out


def scale_latent(encoding: Tensor, config: FirstStageConfig) -> Tensor:
    """The latent that the network works on, of an encoding (b, z, h, w): about of unit variance."""
    if config.latent_mean is None or config.latent_std is None:
        return config.scale_factor * encoding
    mean, std = (encoding.new_tensor(s)[:, None, None] for s in (config.latent_mean, config.latent_std))
    return config.scale_factor * (encoding - mean) / std


def unscale_latent(latent: Tensor, config: FirstStageConfig) -> Tensor:
    """The inverse of `scale_latent`."""
    if config.latent_mean is None or config.latent_std is None:
        return latent / config.scale_factor
    mean, std = (latent.new_tensor(s)[:, None, None] for s in (config.latent_mean, config.latent_std))
    return latent / config.scale_factor * std + mean


class AutoencoderKL(nn.Module):
    """The KL autoencoder; a latent is a scaled encoding, see `scale_latent`.

    Args:
        config: widths and the scale.
        attention: the kernel for the one attention layer, a single head as wide as the deepest level (512 in SDXL).
    """

    def __init__(self, config: FirstStageConfig, *, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, attention)
        self.decoder = Decoder(config, attention)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the encoding, unscaled.

        Args:
            image: (b, 3, h, w) in [-1, 1], h and w multiples of the factor (8 in SDXL).

        Returns:
            Two of (b, z, h/8, w/8); the log-variance lies within [-30, 20].
        """
        return self.split(self.encoder(image))

    def split(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (b, z, h/8, w/8) of what the encoder gives, (b, 2 z, h/8, w/8)."""
        mean, logvar = self.quant_conv(encoded).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The scaled latent (b, z, h/8, w/8) of an image (b, 3, h, w) in [-1, 1].

        Args:
            image: h and w are multiples of the factor (8 in SDXL).
            noise: a standard normal draw shaped as the latent; None takes the most likely latent.
        """
        return self.latent(*self.moments(image), noise)

    def latent(self, mean: Tensor, logvar: Tensor, noise: Tensor | None) -> Tensor:
        """The scaled latent of an encoding's moments: the most likely one, or with `noise` a draw."""
        if noise is not None:
            mean = mean + torch.exp(0.5 * logvar) * noise
        return scale_latent(mean, self.config)

    def decode(self, latent: Tensor) -> Tensor:
        """The image (b, 3, h, w), about in [-1, 1], of a scaled latent (b, z, h/8, w/8)."""
        image: Tensor = self.decoder(self.post_quant_conv(unscale_latent(latent, self.config)))
        return image
