"""A tiny model's weights in transformers' and diffusers' modules: the whole chain that is no code of ours."""

from collections.abc import Mapping
from typing import Any

from open_clip.tokenizer import SimpleTokenizer
from support_diffusers import diffusers_unet, diffusers_vae
from support_tiny import SIZE_WIDTH
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdxl_core.config import ClipTextConfig, ModelConfig, OpenClipTextConfig

SDXL_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

_BIG_G_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BIG_G_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def big_g_in_transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's text tower as CLIPTextModelWithProjection names it: q, k and v apart, the projection transposed."""
    renamed = {}
    for key, value in tensors.items():
        if key in _BIG_G_ENDS:
            renamed[_BIG_G_ENDS[key]] = value
        elif key == "text_projection":
            renamed["text_projection.weight"] = value.T.contiguous()
        elif key.startswith("transformer.resblocks."):
            number, _, name = key.removeprefix("transformer.resblocks.").partition(".")
            layer = f"text_model.encoder.layers.{number}"
            if name.startswith("attn.in_proj_"):
                for projection, part in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{projection}_proj.{name.removeprefix('attn.in_proj_')}"] = part
            else:
                module, _, kind = name.rpartition(".")
                renamed[f"{layer}.{_BIG_G_BLOCK[module]}.{kind}"] = value
        else:
            assert key == "logit_scale", key
    return renamed


def text_config(tower: ClipTextConfig | OpenClipTextConfig, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        projection_dim=tower.width,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def tokenizer(pad_token: str) -> CLIPTokenizer:
    """transformers' tokenizer over the vocabulary that open_clip carries."""
    source = SimpleTokenizer()
    specials = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {specials.get(token, token): number for token, number in source.encoder.items()}
    merges = list(source.bpe_ranks)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)


def big_g(tensors: Mapping[str, Tensor], config: ModelConfig, position: int) -> CLIPTextModelWithProjection:
    tower = config.conditioner.embedders[position]
    assert isinstance(tower, OpenClipTextConfig)
    model = CLIPTextModelWithProjection(text_config(tower, "gelu"))
    weights = big_g_in_transformers_names(under(tensors, f"conditioner.embedders.{position}.model."))
    model.load_state_dict(weights, strict=True)
    return model.eval()


def clip_l(tensors: Mapping[str, Tensor], config: ModelConfig) -> CLIPTextModel:
    tower = config.conditioner.embedders[0]
    assert isinstance(tower, ClipTextConfig)
    model = CLIPTextModel(text_config(tower, "quick_gelu"))
    weights = under(tensors, "conditioner.embedders.0.transformer.")
    weights = {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    names = set(model.state_dict())
    if not any(name.startswith("text_model.") for name in names):  # transformers 5 dropped the outer name
        weights = under(weights, "text_model.")
    model.load_state_dict(weights, strict=True)
    return model.eval()


def network(tensors: Mapping[str, Tensor], config: ModelConfig) -> Any:
    weights = under(tensors, "model.diffusion_model.")
    return diffusers_unet(weights, config.network, addition_time_embed_dim=SIZE_WIDTH)


def chain_parts(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Any]:
    """What every SDXL pipeline of diffusers is made of, but its scheduler."""
    return {
        "vae": diffusers_vae(under(tensors, "first_stage_model."), config.first_stage),
        "text_encoder": clip_l(tensors, config),
        "text_encoder_2": big_g(tensors, config, 1),
        "tokenizer": tokenizer("<|endoftext|>"),
        "tokenizer_2": tokenizer("!"),
        "unet": network(tensors, config),
        "add_watermarker": False,
    }
