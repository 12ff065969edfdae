"""The network of SDXL: a UNet that sees the noisy latent, the noise level, the words and the vector of sizes.

Architecture: Podell et al. 2023, section 2.1 and table 1. Parameter names are those of the published file under
`model.diffusion_model.`
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.config import NetworkConfig
from sdxl_core.models.transformer import SpatialTransformer
from sdxl_core.ops.attention import Attention, sdpa
from sdxl_core.ops.layers import group_norm, sinusoid, zeroed
from sdxl_core.types import Attend, Touch

_EPS = 1e-5


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the embedding added between them, beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(c_in, _EPS), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, c_out))
        # The published names count a dropout before the convolution.
        self.out_layers = nn.Sequential(
            group_norm(c_out, _EPS), nn.SiLU(), nn.Identity(), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (b, c_in, h, w) and emb (b, emb_dim) to (b, c_out, h, w)."""
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(h)
        return out


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Doubles height and width, or one less where the level above is odd."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Map (b, c, h, w) to (b, c, *size)."""
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out


class Stage(nn.ModuleList):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`: gives each layer what it asks for."""

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        crossattn: Tensor,
        *,
        size: torch.Size | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Map (b, c, h, w) to the same, another width or another size.

        `size` is what an Upsample must reach, `attend` what takes the kernel's place in self-attention.
        """
        for layer in self:
            match layer:
                case ResBlock():
                    x = layer(x, emb)
                case SpatialTransformer():
                    x = layer(x, crossattn, attend)
                case Upsample():
                    x = layer(x, size)
                case _:
                    x = layer(x)
        return x


def _embedding(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c_in, c_out), nn.SiLU(), nn.Linear(c_out, c_out))


def _join(x: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([x, skip], dim=1)


class UNet(nn.Module):
    """The network; predicts eps or v, as it was trained.

    Args:
        config: widths, depths and where attention is.
        attention: the kernel for all its attention layers.
    """

    def __init__(self, config: NetworkConfig, *, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.join: Callable[[Tensor, Tensor], Tensor] = _join
        emb_dim = 4 * config.model_channels
        self.time_embed = _embedding(config.model_channels, emb_dim)
        self.label_emb = nn.Sequential(_embedding(config.adm_in_channels, emb_dim))

        def transformer(channels: int, depth: int) -> list[nn.Module]:
            if depth == 0:
                return []
            head_dim, linear = config.num_head_channels, config.use_linear_in_transformer
            return [
                SpatialTransformer(channels, config.context_dim, depth, head_dim, linear=linear, attention=attention)
            ]

        def stage(c_in: int, c_out: int, level: int) -> Stage:
            depth = config.transformer_depth[level] if 2**level in config.attention_resolutions else 0
            return Stage([ResBlock(c_in, c_out, emb_dim), *transformer(c_out, depth)])

        widths = [config.model_channels * m for m in config.channel_mult]
        last = len(widths) - 1
        channels = config.model_channels
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(config.in_channels, channels, 3, padding=1)])])
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(stage(channels, width, level))
                channels = width
                skips.append(channels)
            if level < last:
                self.input_blocks.append(Stage([Downsample(channels)]))
                skips.append(channels)

        # The refiner has no attention on its lowest level, yet has it here.
        self.middle_block = Stage([ResBlock(channels, channels, emb_dim)])
        self.middle_block.extend(transformer(channels, config.transformer_depth[last]))
        self.middle_block.append(ResBlock(channels, channels, emb_dim))

        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(config.num_res_blocks + 1):
                block = stage(channels + skips.pop(), widths[level], level)
                channels = widths[level]
                if level > 0 and i == config.num_res_blocks:
                    block.append(Upsample(channels))
                self.output_blocks.append(block)

        self.out = nn.Sequential(
            group_norm(channels, _EPS), nn.SiLU(), zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, crossattn: Tensor, vector: Tensor, touch: Touch | None = None) -> Tensor:
        """One model call.

        Args:
            x: (b, in_channels, h, w) the scaled noisy latent, joined with the concat condition if there is one;
                of the parameters' dtype, as are `crossattn` and `vector`.
            t: (b,) timesteps, 0..999 in the published models; real numbers are welcome.
            crossattn: (m, n, context_dim) token features of the last m <= b rows; those of the others are zeros.
            vector: (b, adm_in_channels) pooled text and size features.
            touch: what guidance changes on the way; None for nothing.

        Returns:
            (b, out_channels, h, w) prediction.
        """

        def attend(stage: str) -> Attend | None:
            return None if touch is None else touch.at(stage)

        emb = self.time_embed(sinusoid(t, self.config.model_channels).to(x.dtype)) + self.label_emb(vector)
        skips: list[Tensor] = []
        for i, stage in enumerate(self.input_blocks):
            x = stage(x, emb, crossattn, attend=attend(f"input_blocks.{i}"))
            skips.append(x)
        x = self.middle_block(x, emb, crossattn, attend=attend("middle_block"))
        for i, stage in enumerate(self.output_blocks):
            skip = skips.pop()
            if touch is not None and touch.merge is not None:
                x, skip = touch.merge(x, skip)
            size = skips[-1].shape[2:] if skips else None
            x = stage(self.join(x, skip), emb, crossattn, size=size, attend=attend(f"output_blocks.{i}"))
        return cast(Tensor, self.out(x))
