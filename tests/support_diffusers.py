"""Our networks' weights inside diffusers' modules, to compare the two number by number.

The translation is written as tables of rules; diffusers' strict loading checks that every one of its parameters is
filled, and `_translate` that every key of ours was understood.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL
from diffusers import UNet2DConditionModel
from torch import Tensor

from sdxl_core.config import FirstStageConfig, NetworkConfig
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.unet import UNet

Rules = Iterable[tuple[str, str]]
"""(beginning of our key, beginning of theirs); whole dotted parts are compared."""

_RES_BLOCK = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)

_UNET_ENDS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)

_VAE_BLOCK = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)

_VAE_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))


def _within(ours: str, theirs: str, rules: Rules) -> list[tuple[str, str]]:
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in rules]


def _unet_rules(config: NetworkConfig) -> list[tuple[str, str]]:
    rules = list(_UNET_ENDS)
    blocks, last = config.num_res_blocks, len(config.channel_mult) - 1
    for level in range(last + 1):
        for i in range(blocks):
            n = 1 + level * (blocks + 1) + i
            rules += _within(f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{i}", _RES_BLOCK)
            rules.append((f"input_blocks.{n}.1", f"down_blocks.{level}.attentions.{i}"))
        rules.append((f"input_blocks.{(level + 1) * (blocks + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
        for i in range(blocks + 1):
            n = (last - level) * (blocks + 1) + i
            up = f"up_blocks.{last - level}"
            rules += _within(f"output_blocks.{n}.0", f"{up}.resnets.{i}", _RES_BLOCK)
            attended = _depths(config)[level] > 0
            if attended:
                rules.append((f"output_blocks.{n}.1", f"{up}.attentions.{i}"))
            if i == blocks:
                rules.append((f"output_blocks.{n}.{2 if attended else 1}.conv", f"{up}.upsamplers.0.conv"))
    rules += _within("middle_block.0", "mid_block.resnets.0", _RES_BLOCK)
    rules.append(("middle_block.1", "mid_block.attentions.0"))
    rules += _within("middle_block.2", "mid_block.resnets.1", _RES_BLOCK)
    return rules


def _vae_rules(config: FirstStageConfig) -> list[tuple[str, str]]:
    rules = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        rules += _within(half, half, [("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")])
        rules += _within(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", _VAE_BLOCK)
        rules += _within(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _VAE_ATTENTION)
        rules += _within(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", _VAE_BLOCK)
    last = len(config.ch_mult) - 1
    for level in range(last + 1):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        for i in range(config.num_res_blocks + 1):
            rules += _within(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", _VAE_BLOCK)
            rules += _within(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", _VAE_BLOCK)
        rules.append((f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"))
        rules.append((f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"))
    return rules


def _translate(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    table = dict(rules)
    translated = {}
    for key, tensor in tensors.items():
        ends = [match.start() for match in re.finditer(r"\.", key)]
        beginnings = [key[:end] for end in ends if key[:end] in table]
        if len(beginnings) != 1:
            raise KeyError(f"{key}: {len(beginnings)} rules fit")
        translated[table[beginnings[0]] + key.removeprefix(beginnings[0])] = tensor
    return translated


def _depths(config: NetworkConfig) -> list[int]:
    """Transformer blocks of each level, 0 where it has no attention."""
    return [d if 2**i in config.attention_resolutions else 0 for i, d in enumerate(config.transformer_depth)]


def diffusers_unet(
    tensors: Mapping[str, Tensor], config: NetworkConfig, *, addition_time_embed_dim: int = 256
) -> UNet2DConditionModel:
    """diffusers' UNet of that architecture, holding `tensors` themselves (no copy), named as in our state dict.

    addition_time_embed_dim is the `outdim` of the size embedders: diffusers makes the vector from the pooled text
    and the numbers by itself, where ours is handed it.
    """
    widths = [config.model_channels * m for m in config.channel_mult]
    depths = _depths(config)
    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=tuple(widths),
            layers_per_block=config.num_res_blocks,
            down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths),
            up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)),
            transformer_layers_per_block=config.transformer_depth,
            attention_head_dim=tuple(w // config.num_head_channels for w in widths),  # in truth the number of heads
            use_linear_projection=config.use_linear_in_transformer,
            cross_attention_dim=config.context_dim,
            addition_embed_type="text_time",
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=config.adm_in_channels,
        )
    theirs.load_state_dict(_translate(tensors, _unet_rules(config)), strict=True, assign=True)
    return theirs.eval()


def diffusers_vae(tensors: Mapping[str, Tensor], config: FirstStageConfig) -> DiffusersAutoencoderKL:
    """diffusers' autoencoder of that architecture, holding `tensors` themselves, named as in our state dict."""
    with torch.device("meta"):
        theirs = DiffusersAutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.out_ch,
            down_block_types=("DownEncoderBlock2D",) * len(config.ch_mult),
            up_block_types=("UpDecoderBlock2D",) * len(config.ch_mult),
            block_out_channels=tuple(config.ch * m for m in config.ch_mult),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            norm_num_groups=config.norm_groups,
            scaling_factor=config.scale_factor,
        )
    translated = _translate(tensors, _vae_rules(config))
    # Linear layers there, 1x1 convolutions here.
    flat = {k: t[:, :, 0, 0] if ".attentions.0.to_" in k and t.ndim == 4 else t for k, t in translated.items()}
    theirs.load_state_dict(flat, strict=True, assign=True)
    return theirs.eval()


def to_diffusers_unet(unet: UNet, config: NetworkConfig, *, addition_time_embed_dim: int = 256) -> UNet2DConditionModel:
    """diffusers' UNet with the same weights as `unet`, of which it shares the memory."""
    return diffusers_unet(unet.state_dict(), config, addition_time_embed_dim=addition_time_embed_dim)


def to_diffusers_vae(vae: AutoencoderKL, config: FirstStageConfig) -> DiffusersAutoencoderKL:
    """diffusers' autoencoder with the same weights as `vae`, of which it shares the memory."""
    return diffusers_vae(vae.state_dict(), config)
