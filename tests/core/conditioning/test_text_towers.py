import math
from typing import Any

import pytest
import torch
from support_conditioning import PROMPTS, randomize
from support_networks import relative_error
from torch import Tensor

from sdxl_core.conditioning.text import ClipText, OpenClipText
from sdxl_core.conditioning.tokenizer import END, Rules, Tokenizer
from sdxl_core.config import ClipTextConfig, OpenClipTextConfig

CLIP = ClipTextConfig(kind="clip", width=32, layers=3, heads=4, layer_idx=2)
OPEN_CLIP = OpenClipTextConfig(kind="open_clip", width=48, layers=3, heads=4)


def ids_of(rules: Rules, prompts: list[str] = PROMPTS) -> Tensor:
    return torch.tensor([Tokenizer(rules).padded(prompt) for prompt in prompts])


def clip_reference(config: ClipTextConfig, ours: ClipText) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    reference = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=END,
        )
    ).eval()
    inner = getattr(reference, "text_model", reference)  # the layout of some transformers 5 releases
    inner.load_state_dict(ours.transformer.text_model.state_dict(), strict=True)
    return reference


@pytest.mark.parametrize(
    "config", [CLIP, ClipTextConfig(kind="clip", width=32, heads=4)], ids=["three layers", "the depth of ViT-L"]
)
@torch.no_grad()
def test_vit_l_equals_transformers(config: ClipTextConfig) -> None:
    ours = ClipText(config)
    randomize(ours)
    ids = ids_of("clip")
    theirs = clip_reference(config, ours)(ids, output_hidden_states=True)
    features = ours(ids)
    assert relative_error(features.hidden, theirs.hidden_states[config.layer_idx]) <= 1e-5
    assert features.pooled is None
    assert relative_error(ours.pooled(ids), theirs.pooler_output) <= 1e-5


@pytest.fixture(params=["clip", "open_clip"])
def tower(request: pytest.FixtureRequest) -> ClipText | OpenClipText:
    built: ClipText | OpenClipText = ClipText(CLIP) if request.param == "clip" else OpenClipText(OPEN_CLIP)
    randomize(built)
    return built


@torch.no_grad()
def test_a_token_is_told_only_by_those_before_it(tower: ClipText | OpenClipText) -> None:
    ids = ids_of("clip", ["a red cat on a blue chair"])
    other = ids.clone()
    other[0, 5:] = 1000
    torch.testing.assert_close(tower(ids).hidden[:, :5], tower(other).hidden[:, :5])
    assert relative_error(tower(ids).hidden[:, 5:], tower(other).hidden[:, 5:]) > 0.1


@torch.no_grad()
def test_a_batch_equals_single_prompts(tower: ClipText | OpenClipText) -> None:
    ids = ids_of("clip", ["a cat", "a very small dog in the snow"])
    together = tower(ids)
    for row in range(2):
        alone = tower(ids[row : row + 1])
        assert relative_error(together.hidden[row : row + 1], alone.hidden) <= 1e-5
        assert relative_error(tower.pooled(ids)[row : row + 1], tower.pooled(ids[row : row + 1])) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_dtypes(tower: ClipText | OpenClipText, dtype: torch.dtype) -> None:
    ids = ids_of("clip", ["a cat"])
    single = tower(ids).hidden
    features = tower.to(dtype)(ids)
    assert features.hidden.dtype == tower.pooled(ids).dtype == dtype
    assert relative_error(features.hidden.float(), single) < (1e-5 if dtype == torch.float64 else 0.05)


def test_no_weight_is_left_out_of_contrastive_training(tower: ClipText | OpenClipText) -> None:
    tower.pooled(ids_of("clip", ["a cat", "two dogs"])).square().sum().backward()
    untaught = {name for name, p in tower.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert {name.rsplit(".", 1)[-1] for name in untaught} <= {"logit_scale"}  # taught by the loss itself


def test_later_layers_are_not_run_for_the_hidden_state() -> None:
    tower = ClipText(CLIP)
    tower(ids_of("clip", ["a cat"])).hidden.sum().backward()
    last = tower.transformer.text_model.encoder.layers[2]
    assert all(p.grad is None for p in last.parameters())


def test_the_meta_device_runs_without_weights() -> None:
    with torch.device("meta"):
        tower = OpenClipText(OpenClipTextConfig(kind="open_clip"))
    assert sum(p.numel() for p in tower.parameters()) == 694_659_841  # the text half of ViT-bigG-14
    features = tower(torch.zeros(2, 77, dtype=torch.long, device="meta"))
    assert features.hidden.shape == (2, 77, 1280)
    assert features.pooled is not None
    assert features.pooled.shape == (2, 1280)


def test_fresh_weights_have_the_spread_of_clip() -> None:
    config = OpenClipTextConfig(kind="open_clip", width=128, layers=8, heads=2)
    tower = OpenClipText(config)
    tower.init_weights(torch.Generator().manual_seed(0))
    stds = {name: float(p.detach().std()) for name, p in tower.named_parameters() if p.ndim > 1}
    expected = {
        "token_embedding": 0.02,
        "positional_embedding": 0.01,
        "text_projection": 128**-0.5,
        "in_proj_weight": 128**-0.5,
        "out_proj": 128**-0.5 * 16**-0.5,
        "c_fc": 256**-0.5,
        "c_proj": 128**-0.5 * 16**-0.5,
    }
    for name, std in stds.items():
        kind = next(key for key in expected if key in name)
        assert std == pytest.approx(expected[kind], rel=0.03), name
    assert tower.model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_fresh_weights_come_from_the_generator_alone() -> None:
    tower, other = ClipText(CLIP), ClipText(CLIP)
    tower.init_weights(torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    other.init_weights(torch.Generator().manual_seed(5))
    for name, value in tower.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@torch.no_grad()
def test_blank_features_have_the_shape_of_real_ones(tower: ClipText | OpenClipText) -> None:
    real, blank = tower(ids_of("clip", ["a", "b"])), tower.blank(2)
    assert blank.hidden.shape == real.hidden.shape
    assert not blank.hidden.any()
    assert (blank.pooled is None) == (real.pooled is None)
    if real.pooled is not None and blank.pooled is not None:
        assert blank.pooled.shape == real.pooled.shape
        assert not blank.pooled.any()
