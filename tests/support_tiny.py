"""A model of SDXL's shape that fits in a test: its config, and files of random weights in the original key layout."""

import hashlib
import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdxl_cli.options import PASSES
from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.config import (
    ClipTextConfig,
    ConditionerConfig,
    FirstStageConfig,
    ModelConfig,
    ModelFile,
    NetworkConfig,
    OpenClipTextConfig,
    SizeEmbedderConfig,
)
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.unet import UNet
from sdxl_core.ops.meta import shapes_only

CUDA_PASSES = {
    "safe_half",
    "fused_first_stage",
    "channels_last",
    "fused_norms",
    "fused_transformer",
    "fp8",
    "cuda_graph",
}
"""Names of the passes that only an engine on a GPU can have."""

CPU_PASSES = tuple(name for name in PASSES if name not in CUDA_PASSES and name != "winograd")
"""Names of the passes that an engine on the CPU can have whose network is narrow."""

CLIP_WIDTH, OPEN_CLIP_WIDTH, SIZE_WIDTH = 32, 64, 32


Kind = Literal["base", "refiner", "inpaint", "edit"]


def tiny_config(kind: Kind = "base") -> ModelConfig:
    """Two or one text towers, three levels, a factor-8 first stage; the block structure of the published model."""
    base = kind != "refiner"
    third: Literal["target_size", "aesthetic_score"] = "target_size" if base else "aesthetic_score"
    clip = (ClipTextConfig(kind="clip", width=CLIP_WIDTH, layers=3, heads=2, layer_idx=2),)
    return ModelConfig(
        name=f"tiny-{kind}",
        kind=kind,
        native_size=(64, 64),
        file=ModelFile(name=f"tiny_{kind}.safetensors"),
        network=NetworkConfig(
            in_channels={"inpaint": 9, "edit": 8}.get(kind, 4),
            model_channels=32,
            channel_mult=(1, 2, 2),
            attention_resolutions=(4, 2),
            transformer_depth=(0, 1, 2),
            num_head_channels=16,
            context_dim=OPEN_CLIP_WIDTH + (CLIP_WIDTH if base else 0),
            adm_in_channels=OPEN_CLIP_WIDTH + (6 if base else 5) * SIZE_WIDTH,
        ),
        conditioner=ConditionerConfig(
            embedders=(
                *(clip if base else ()),
                OpenClipTextConfig(kind="open_clip", width=OPEN_CLIP_WIDTH, layers=3, heads=4),
                SizeEmbedderConfig(kind="concat_timestep_nd", input_key="original_size", outdim=SIZE_WIDTH),
                SizeEmbedderConfig(kind="concat_timestep_nd", input_key="crop_coords_top_left", outdim=SIZE_WIDTH),
                SizeEmbedderConfig(kind="concat_timestep_nd", input_key=third, outdim=SIZE_WIDTH),
            )
        ),
        first_stage=FirstStageConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1),
    )


def write_preset(path: Path, config: ModelConfig, rest: str = "") -> Path:
    """Write a model preset, followed by more TOML, and return its path."""
    path.write_text(f"model = {_toml(config.model_dump())}\n{rest}")
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(v)}" for key, v in value.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def tiny_tensors(kind: Kind = "base", seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the single file, float32; each is drawn from (seed, key) alone."""
    config = tiny_config(kind)
    with shapes_only():
        parts: dict[str, nn.Module] = {
            "model.diffusion_model.": UNet(config.network),
            "first_stage_model.": AutoencoderKL(config.first_stage),
            "conditioner.": Conditioner(config.conditioner),
        }
    shapes = {prefix + key: value.shape for prefix, part in parts.items() for key, value in part.state_dict().items()}
    tensors = {key: _draw(key, tuple(shape), seed) for key, shape in shapes.items()}
    if kind != "refiner":
        # The published base has this key too; it is no weight.
        key = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
        tensors[key] = torch.arange(77).expand(1, 77).contiguous()
    return tensors


def write_tiny_checkpoint(path: Path, kind: Kind = "base", seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write `tiny_tensors` as one safetensors file (20 MB in float32, mostly the vocabulary) and return its path."""
    tensors = tiny_tensors(kind, seed)
    save_file({k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}, path)
    return path


def _draw(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if key.endswith("logit_scale"):
        return torch.tensor(math.log(100.0))
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    values = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(shape, dtype=np.float32)
    if len(shape) < 2:
        values = 1 + 0.1 * values if key.endswith("weight") else 0.02 * values
    elif "embedding" in key:
        values *= 0.02
    else:
        values /= math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values)
