import copy
import json
import math
import pickle
from pathlib import Path
from typing import Literal

import pytest
import torch
from support_conditioning import randomize
from torch import Tensor

from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.conditioning.text import TextFeatures
from sdxl_core.config import ClipTextConfig, ConditionerConfig, OpenClipTextConfig, SizeEmbedderConfig

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"
Kind = Literal["base", "refiner"]


def config_of(kind: Kind, *, tiny: bool, ucg_rate: float = 0.0) -> ConditionerConfig:
    clip = ClipTextConfig(kind="clip", width=32, layers=3, heads=4, layer_idx=2, ucg_rate=ucg_rate)
    open_clip = OpenClipTextConfig(kind="open_clip", width=48, layers=2, heads=4, ucg_rate=ucg_rate)
    third: Literal["target_size", "aesthetic_score"] = "target_size" if kind == "base" else "aesthetic_score"
    sizes = (
        SizeEmbedderConfig(kind="concat_timestep_nd", input_key="original_size"),
        SizeEmbedderConfig(kind="concat_timestep_nd", input_key="crop_coords_top_left"),
        SizeEmbedderConfig(kind="concat_timestep_nd", input_key=third),
    )
    if not tiny:
        clip, open_clip = ClipTextConfig(kind="clip"), OpenClipTextConfig(kind="open_clip")
    return ConditionerConfig(embedders=(*((clip,) if kind == "base" else ()), open_clip, *sizes))


@pytest.fixture(scope="module", params=["base", "refiner"])
def conditioner(request: pytest.FixtureRequest) -> Conditioner:
    built = Conditioner(config_of(request.param, tiny=True))
    randomize(built)
    return built.requires_grad_(False)


@pytest.fixture(scope="module")
def base() -> Conditioner:
    built = Conditioner(config_of("base", tiny=True))
    randomize(built)
    return built.requires_grad_(False)


CAT = ConditionRequest("a cat", None, (512, 768), (8, 16), (1024, 960), 7.5)
DOG = ConditionRequest("a dog", "an oil painting of a dog")


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_keys_and_shapes_are_those_of_the_published_file(kind: Kind) -> None:
    manifest = json.loads((MANIFESTS / f"sd_xl_{kind}_1.0.json").read_text())
    published = {
        key.removeprefix("conditioner."): tuple(shape)
        for key, shape in manifest.items()
        if key.startswith("conditioner.")
    }
    with torch.device("meta"):
        conditioner = Conditioner(config_of(kind, tiny=False))
    ours = {key: tuple(value.shape) for key, value in conditioner.state_dict().items()}
    # The base's file has this key too; it is no weight.
    published.pop("embedders.0.transformer.text_model.embeddings.position_ids", None)
    assert ours == published


@pytest.mark.parametrize(("kind", "width", "vector"), [("base", 2048, 2816), ("refiner", 1280, 2560)])
def test_full_size_shapes(kind: Kind, width: int, vector: int) -> None:
    with torch.device("meta"):
        conditioner = Conditioner(config_of(kind, tiny=False))
    text = conditioner.encode_ids([ids.to("meta") for ids in conditioner.token_ids([CAT, DOG])])
    conditioning = conditioner.assemble(text, conditioner.numbers([CAT, DOG]))
    assert conditioning.crossattn.shape == (2, 77, width)
    assert conditioning.vector.shape == (2, vector)
    assert conditioning.concat is None


def test_features_lie_in_the_order_of_the_config(base: Conditioner) -> None:
    clip, open_clip = base.encode_text([CAT, DOG])
    conditioning = base([CAT, DOG])
    assert open_clip.pooled is not None
    assert torch.equal(conditioning.crossattn, torch.cat([clip.hidden, open_clip.hidden], dim=-1))
    assert torch.equal(conditioning.vector[:, :48], open_clip.pooled)


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_the_numbers_are_embedded_as_in_diffusers(kind: Kind) -> None:
    from diffusers.models.embeddings import Timesteps

    conditioner = Conditioner(config_of(kind, tiny=True))
    third = CAT.target_size if kind == "base" else (CAT.aesthetic_score,)
    time_ids = torch.tensor([[*CAT.original_size, *CAT.crop_coords_top_left, *third]])
    features = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(time_ids.flatten())
    torch.testing.assert_close(conditioner([CAT]).vector[:, 48:], features.reshape(1, -1), rtol=0, atol=1e-6)


def test_prompt_2_goes_to_the_second_tower_alone(base: Conditioner) -> None:
    plain = ConditionRequest("a dog")
    other, same = base([DOG]), base([plain])
    assert torch.equal(other.crossattn[..., :32], same.crossattn[..., :32])
    painted = base([ConditionRequest("an oil painting of a dog")])
    assert torch.equal(other.crossattn[..., 32:], painted.crossattn[..., 32:])
    assert torch.equal(other.vector[:, :48], painted.vector[:, :48])


def test_an_empty_prompt_2_is_a_prompt(base: Conditioner) -> None:
    empty = base([ConditionRequest("a dog", "")])
    assert torch.equal(empty.crossattn[..., 32:], base([ConditionRequest("")]).crossattn[..., 32:])


def test_a_batch_equals_single_requests(conditioner: Conditioner) -> None:
    together = conditioner([CAT, DOG])
    for row, request in enumerate([CAT, DOG]):
        alone = conditioner([request])
        torch.testing.assert_close(together.crossattn[row : row + 1], alone.crossattn, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.vector[row : row + 1], alone.vector, rtol=1e-5, atol=1e-5)


def test_a_prompt_asked_for_twice_is_encoded_once(base: Conditioner) -> None:
    batches: list[int] = []
    handles = [tower.register_forward_hook(lambda _, args, __: batches.append(len(args[0]))) for tower in base.towers]
    conditioning = base([CAT, DOG, CAT, ConditionRequest("a cat", target_size=(8, 8))])
    for handle in handles:
        handle.remove()
    assert batches == [2, 2]
    assert torch.equal(conditioning.crossattn[0], conditioning.crossattn[3])
    assert not torch.equal(conditioning.vector[0], conditioning.vector[3])


def test_cached_token_ids_give_the_same_conditioning(conditioner: Conditioner) -> None:
    text = conditioner.encode_ids(conditioner.token_ids([CAT, DOG]))
    cached = conditioner.assemble(text, conditioner.numbers([CAT, DOG]))
    assert torch.equal(cached.crossattn, conditioner([CAT, DOG]).crossattn)
    assert torch.equal(cached.vector, conditioner([CAT, DOG]).vector)


def test_forced_zeros_blank_the_text_and_keep_the_sizes(conditioner: Conditioner) -> None:
    runs: list[int] = []
    handles = [tower.register_forward_hook(lambda *_: runs.append(1)) for tower in conditioner.towers]
    blank = conditioner([CAT, DOG], force_zero={"txt"})
    for handle in handles:
        handle.remove()
    full = conditioner([CAT, DOG])
    assert runs == []
    assert blank.crossattn.shape == full.crossattn.shape
    assert not blank.crossattn.any()
    assert not blank.vector[:, :48].any()
    assert torch.equal(blank.vector[:, 48:], full.vector[:, 48:])


def test_forced_zeros_of_a_size(conditioner: Conditioner) -> None:
    full, blank = conditioner([CAT]), conditioner([CAT], force_zero=["original_size"])
    assert torch.equal(blank.crossattn, full.crossattn)
    assert not blank.vector[:, 48 : 48 + 512].any()
    assert torch.equal(blank.vector[:, 48 + 512 :], full.vector[:, 48 + 512 :])


def test_forced_zeros_hide_values_that_are_not_finite(base: Conditioner) -> None:
    text = tuple(
        TextFeatures(f.hidden * math.nan, None if f.pooled is None else f.pooled * math.inf)
        for f in base.encode_text([CAT])
    )
    blank = base.assemble(text, base.numbers([CAT]), force_zero={"txt"})
    assert not blank.crossattn.any()
    assert blank.vector.isfinite().all()


def test_an_unknown_key_is_refused(base: Conditioner) -> None:
    with pytest.raises(ValueError, match="no embedder reads aesthetic_score, text"):
        base([CAT], force_zero={"text", "aesthetic_score", "txt"})


def test_a_conditioner_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no text tower"):
        Conditioner(ConditionerConfig(embedders=config_of("refiner", tiny=True).embedders[1:]))


def ones_through(conditioner: Conditioner, rows: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Whether each row of ViT-L's tokens, bigG's tokens, bigG's pooled vector and the sizes was kept."""
    text = (TextFeatures(torch.ones(rows, 1, 32)), TextFeatures(torch.ones(rows, 1, 48), torch.ones(rows, 48)))
    numbers = {key: value.expand(rows, -1) for key, value in conditioner.numbers([CAT]).items()}
    out = conditioner.assemble(text, numbers, generator=generator)
    return out.crossattn[:, 0, 0], out.crossattn[:, 0, 32], out.vector[:, 0], out.vector[:, 48:].abs().sum(1)


def test_dropout_has_its_rate_for_each_embedder_and_row() -> None:
    rate, rows = 0.3, 10_000
    conditioner = Conditioner(config_of("base", tiny=True, ucg_rate=rate))
    clip, open_clip, pooled, sizes = ones_through(conditioner, rows, torch.Generator().manual_seed(0))
    tolerance = 5 * math.sqrt(rate * (1 - rate) / rows)
    assert float((clip == 0).float().mean()) == pytest.approx(rate, abs=tolerance)
    assert float((open_clip == 0).float().mean()) == pytest.approx(rate, abs=tolerance)
    both = float(((clip == 0) & (open_clip == 0)).float().mean())
    assert both == pytest.approx(rate**2, abs=5 * math.sqrt(rate**2 * (1 - rate**2) / rows))  # independent draws
    assert torch.equal(open_clip, pooled)  # the two outputs of one embedder go together
    assert (sizes > 0).all()  # their rate is 0


def test_dropout_is_told_by_the_generator_alone() -> None:
    conditioner = Conditioner(config_of("base", tiny=True, ucg_rate=0.5))
    first = ones_through(conditioner, 64, torch.Generator().manual_seed(3))
    again = ones_through(conditioner, 64, torch.Generator().manual_seed(3))
    other = ones_through(conditioner, 64, torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all((kept > 0).all() for kept in ones_through(conditioner, 64, None))


def test_output_follows_the_dtype_of_the_towers() -> None:
    conditioner = Conditioner(config_of("base", tiny=True)).to(torch.bfloat16)
    for conditioning in (conditioner([CAT]), conditioner([CAT], force_zero={"txt"})):
        assert conditioning.crossattn.dtype == conditioning.vector.dtype == torch.bfloat16
    # Sizes are computed in float32: 1024 and 1023 are the same number in bfloat16, their features are not.
    near = ConditionRequest("a cat", None, (512, 768), (8, 16), (1023, 960), 7.5)
    assert not torch.equal(conditioner([CAT]).vector, conditioner([near]).vector)


def test_it_can_be_copied_for_an_average_and_sent_to_a_worker(base: Conditioner) -> None:
    for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert torch.equal(other([CAT]).crossattn, base([CAT]).crossattn)
