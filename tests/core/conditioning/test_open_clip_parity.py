"""Everything that is compared with open_clip; its import takes seconds, so it is in one file."""

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from support_conditioning import PROMPTS, any_prompt, randomize
from support_networks import relative_error

from sdxl_core.conditioning.text import OpenClipText
from sdxl_core.conditioning.tokenizer import MAX_TOKENS, Tokenizer
from sdxl_core.config import OpenClipTextConfig


@pytest.fixture(scope="session")
def open_clip() -> ModuleType:
    return importlib.import_module("open_clip")


@pytest.fixture(scope="session")
def reference(open_clip: ModuleType) -> Any:
    return open_clip.tokenizer.SimpleTokenizer()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens(reference: Any, prompt: str) -> None:
    ours = Tokenizer("open_clip")
    assert ours.encode(prompt) == reference.encode(prompt)
    if ours.count(prompt) <= MAX_TOKENS:
        assert ours.padded(prompt) == reference(prompt)[0].tolist()


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(any_prompt)
def test_tokens_of_any_prompt(reference: Any, prompt: str) -> None:
    assert Tokenizer("open_clip").encode(prompt) == reference.encode(prompt)


def test_a_long_prompt_keeps_the_same_tokens(reference: Any) -> None:
    prompt = "a cat and a dog, " * 40
    assert Tokenizer("open_clip").padded(prompt) == reference(prompt)[0].tolist()


@pytest.mark.parametrize("layers", [2, 32], ids=["two layers", "the depth of ViT-bigG"])
@torch.no_grad()
def test_tower(open_clip: ModuleType, layers: int) -> None:
    ours = OpenClipText(OpenClipTextConfig(kind="open_clip", width=40, layers=layers, heads=4))
    randomize(ours, std=0.1)
    theirs = open_clip.model.CLIP(
        embed_dim=40,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=1, width=8, head_width=8, patch_size=8, image_size=8),
        text_cfg=open_clip.model.CLIPTextCfg(width=40, heads=4, layers=layers),
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.model.state_dict(), strict=False)
    assert unexpected == []
    assert all(key.startswith("visual.") for key in missing)

    seen: dict[str, torch.Tensor] = {}
    theirs.transformer.resblocks[-1].register_forward_pre_hook(lambda _, args: seen.update(penultimate=args[0]))
    ids = torch.tensor([Tokenizer("open_clip").padded(prompt) for prompt in PROMPTS])
    pooled = theirs.encode_text(ids)
    features = ours(ids)
    assert features.pooled is not None
    assert relative_error(features.hidden, seen["penultimate"]) <= 1e-5
    assert relative_error(features.pooled, pooled) <= 1e-5
    assert torch.equal(ours.pooled(ids), features.pooled)


def test_fresh_weights_start_where_open_clip_starts(open_clip: ModuleType) -> None:
    theirs = open_clip.model.CLIP(
        embed_dim=64,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=1, width=8, head_width=8, patch_size=8, image_size=8),
        text_cfg=open_clip.model.CLIPTextCfg(width=64, heads=2, layers=6),
    ).state_dict()
    ours = OpenClipText(OpenClipTextConfig(kind="open_clip", width=64, heads=2, layers=6)).model.state_dict()
    for key, value in ours.items():
        if value.ndim == 2:
            assert float(value.std()) == pytest.approx(float(theirs[key].std()), rel=0.1), key
