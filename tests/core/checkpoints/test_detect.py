import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support_files import published_shapes, sparse_file
from support_tiny import tiny_tensors

from sdxl_core.checkpoints.detect import SIGNATURES, Detection, detect
from sdxl_core.checkpoints.header import read_header

Shapes = dict[str, Sequence[int]]
UNET = "model.diffusion_model."


def kind_of(folder: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> Detection:
    return detect(read_header(sparse_file(folder / "x.safetensors", shapes, metadata=metadata)))


def base() -> Shapes:
    return {**published_shapes("base")}


def part(*prefixes: str, take_off: str = "") -> Shapes:
    return {key.removeprefix(take_off): shape for key, shape in base().items() if key.startswith(prefixes)}


def with_channels(count: int) -> Shapes:
    return base() | {UNET + "input_blocks.0.0.weight": [320, count, 3, 3]}


def shortened() -> Shapes:
    """SSD-1B: depths 2, 2, 4, 4 and no transformer in the middle."""
    gone = [f"{UNET}middle_block.1.", f"{UNET}middle_block.2."]
    gone += [f"{UNET}input_blocks.{n}.1.transformer_blocks.{d}." for n in (7, 8) for d in range(4, 10)]
    return {key: shape for key, shape in base().items() if not key.startswith(tuple(gone))}


def old_family(width: int) -> Shapes:
    """Stable Diffusion 1 (768) and 2 (1024): no vector condition, other names for the text encoder."""
    return {
        UNET + "input_blocks.0.0.weight": [320, 4, 3, 3],
        UNET + "input_blocks.1.0.in_layers.0.weight": [320],
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, width],
        UNET + "middle_block.0.in_layers.0.weight": [1280],
        UNET + "out.2.weight": [4, 320, 3, 3],
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [49408, width],
        "first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3],
    }


TEXT = "conditioner.embedders.0.transformer."
CASES: dict[str, tuple[Shapes, str, str]] = {
    "base": (base(), "base", "two text encoders, label_emb takes 2816 features, cross-attention 2048"),
    "refiner": ({**published_shapes("refiner")}, "refiner", "label_emb takes 2560 features, cross-attention 1280"),
    "with averages": (base() | {"model_ema.decay": [], "model_ema.out2weight": [4]}, "base", "two text encoders"),
    "inpaint": (with_channels(9), "inpaint", "9 channels"),
    "edit": (with_channels(8), "edit", "8 channels"),
    "ssd-1b": (shortened(), "distilled", "SSD-1B"),
    "playground": (base() | {"edm_mean": [4], "edm_std": [4]}, "base", "two text encoders"),
    "cosxl": (base() | {"edm_vpred.sigma_max": []}, "base", "two text encoders"),
    "sd1": (old_family(768), "sd1", "768"),
    "sd2": (old_family(1024), "sd2", "1024"),
    "unet": (part(UNET), "unet_only", "no text encoders"),
    "bare unet": (part(UNET, take_off=UNET), "unet_only", "no text encoders"),
    "vae": (part("first_stage_model.", take_off="first_stage_model."), "vae", "encoder.conv_in"),
    "prefixed vae": (part("first_stage_model."), "vae", "first_stage_model"),
    "text": (part(TEXT, take_off=TEXT), "text_encoder", "text_model"),
    "open_clip text": (part("conditioner.embedders.1."), "text_encoder", "conditioner.embedders"),
    "kohya lora": (
        {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": [8, 640], "lora_unet_x.alpha": []},
        "lora",
        "1 of its 2 tensors",
    ),
    "peft lora": ({"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": [8, 640]}, "lora", "factors"),
    "loha": ({"lora_unet_x.hada_w1_a": [8, 640]}, "lora", "factors"),
    "lokr": ({"lora_unet_x.lokr_w1": [8, 640]}, "lora", "factors"),
    "controlnet": (
        part(UNET, take_off=UNET) | {"input_hint_block.0.weight": [16, 3, 3, 3]},
        "controlnet",
        "input_hint",
    ),
    "diffusers": (
        {"conv_in.weight": [320, 4, 3, 3], "down_blocks.0.resnets.0.norm1.weight": [1], "up_blocks.0.x": [1]},
        "diffusers_unet",
        "diffusers layout",
    ),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": [4, 4]}, "other_network", "Flux"),
    "sd3": ({UNET + "joint_blocks.0.x": [1]}, "other_network", "SD 3"),
    "embedding": ({"clip_l": [4, 768], "clip_g": [4, 1280]}, "embedding", "clip_g, clip_l"),
    "numbers": ({"a": [1], "b\x1b[31m": [2]}, "unknown", "a, 'b\\x1b[31m'"),
    "nothing": ({}, "unknown", "none at all"),
}


@pytest.mark.parametrize("name", CASES)
def test_says_what_a_file_is_and_why(tmp_path: Path, name: str) -> None:
    shapes, kind, reason = CASES[name]
    found = kind_of(tmp_path, shapes)
    assert found.kind == kind
    assert reason in found.reason
    assert found.reason.isprintable()


def test_every_signature_has_a_case() -> None:
    assert {signature.kind for signature in SIGNATURES} <= {kind for _, kind, _ in CASES.values()}


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_a_small_model_of_the_same_structure_is_of_the_same_kind(tmp_path: Path, kind: str) -> None:
    shapes: Shapes = {key: tuple(tensor.shape) for key, tensor in tiny_tensors(kind).items()}  # type: ignore[arg-type]
    found = kind_of(tmp_path, shapes)
    assert found.kind == kind
    assert found.network is not None
    assert (found.network.model_channels, found.network.depths) == (32, (0, 0, 1, 1, 2, 2))


def test_reads_the_architecture_off_the_shapes(tmp_path: Path) -> None:
    numbers = kind_of(tmp_path, {**published_shapes("refiner")}).network
    assert numbers is not None
    assert (numbers.model_channels, numbers.in_channels, numbers.out_channels) == (384, 4, 4)
    assert (numbers.context_dim, numbers.adm_in_channels) == (1280, 2560)
    assert (numbers.depths, numbers.middle_depth) == ((0, 0, 4, 4, 4, 4, 0, 0), 4)


def test_takes_no_time(tmp_path: Path) -> None:
    header = read_header(sparse_file(tmp_path / "x.safetensors", {**published_shapes("base")}))
    start = time.process_time()
    detect(header)
    assert time.process_time() - start < 0.1


def test_absurd_names_are_no_crash(tmp_path: Path) -> None:
    digits = "9" * 5000
    shapes: Shapes = {
        UNET + "input_blocks.0.0.weight": [],
        UNET + f"input_blocks.{digits}.1.transformer_blocks.{digits}.attn2.to_k.weight": [1],
        UNET + "out.2.weight": [4],
        "label_emb.0.0.weight": [3],
    }
    assert kind_of(tmp_path, shapes).kind == "unknown"


def test_a_block_number_of_thousands_of_digits_is_no_block(tmp_path: Path) -> None:
    odd = {f"{UNET}input_blocks.{'9' * 5000}.0.in_layers.0.weight": [1]}
    found = kind_of(tmp_path, base() | odd)
    assert found.kind == "base"
    assert found.network is not None
    assert found.network.depths == (0, 0, 2, 2, 10, 10)
