import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_closed_form import legacy_ddpm
from support_plans import plan_of
from support_tiny import tiny_config

from sdxl_core.batching import batches, total_calls
from sdxl_core.diffusion.discretization import edm
from sdxl_core.errors import ScheduleError, UsageError
from sdxl_core.plan import Plan
from sdxl_core.resolutions import check_size
from sdxl_core.work import network_rows

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
sides = st.integers(1, 256).map(lambda n: 8 * n)
reals = st.floats(allow_nan=False, allow_infinity=False)


def test_a_bare_prompt_takes_everything_from_the_preset() -> None:
    plan = plan_of()
    assert (plan.model, plan.file) == ("sdxl-base-1.0", "sd_xl_base_1.0.safetensors")
    assert plan.file_sha256 == "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"
    assert plan.size == plan.original_size == plan.target_size == (1024, 1024)
    assert (plan.steps, plan.guider.scale, plan.seed) == (30, 5.0, 0)
    assert plan.empty_negative == "zeros"
    assert plan.zero_negative


def test_the_refiner_encodes_an_empty_negative() -> None:
    plan = plan_of(preset="sdxl-refiner-1.0")
    assert plan.empty_negative == "encode"
    assert not plan.zero_negative


@pytest.mark.parametrize("flags", [{"recipe_negative": "blurry"}, {"negative_2": "blurry"}])
def test_a_negative_prompt_of_either_tower_is_encoded(flags: dict[str, str]) -> None:
    assert not plan_of(**flags).zero_negative


def test_sizes_of_the_conditioning_follow_the_picture_unless_set() -> None:
    plan = plan_of(recipe_size=(512, 768), recipe_target_size=(100, 200))
    assert plan.requests()[0][0].original_size == (512, 768)
    assert plan.requests()[0][0].target_size == (100, 200)


def test_the_negative_side_differs_in_words_and_score_alone() -> None:
    plan = plan_of(prompt_2="drawn", recipe_negative="blurry", negative_2="photo", recipe_size=(512, 768))
    cond, uncond = plan.requests()[0][0], plan.negative_request()
    assert (cond.prompt, cond.prompt_2, cond.aesthetic_score) == ("a cat", "drawn", 6.0)
    assert (uncond.prompt, uncond.prompt_2, uncond.aesthetic_score) == ("blurry", "photo", 2.5)
    assert cond.original_size == uncond.original_size == (512, 768)
    assert cond.target_size == uncond.target_size
    assert cond.crop_coords_top_left == uncond.crop_coords_top_left


def test_a_file_of_ones_own_has_not_the_published_hash() -> None:
    plan = plan_of(file="mine.safetensors", vae="vae.safetensors", vae_sha256="ab")
    assert (plan.file, plan.file_sha256, plan.vae, plan.vae_sha256) == (
        "mine.safetensors",
        None,
        "vae.safetensors",
        "ab",
    )


def test_the_sigmas_are_those_of_the_discretization() -> None:
    assert plan_of(recipe_steps=7).sigmas() == legacy_ddpm(7)
    plan = plan_of(recipe_steps=5, recipe_discretization__name="edm", recipe_discretization__rho=7.0)
    assert plan.sigmas() == edm(5, rho=7.0)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 10), ("heun", 19), ("dpmpp_2s_ancestral", 19), ("lms", 10)])
def test_model_calls_count_every_evaluation(sampler: str, calls: int) -> None:
    assert plan_of(recipe_steps=10, recipe_sampler__name=sampler).model_calls() == calls


def test_nobody_knows_beforehand_how_many_calls_an_adaptive_sampler_makes() -> None:
    adaptive, fixed = plan_of(recipe_sampler__name="dpm_adaptive"), plan_of()
    assert adaptive.model_calls() is None
    assert total_calls([[fixed], [fixed, fixed]]) == 2 * (fixed.model_calls() or 0)
    assert total_calls([[fixed], [adaptive]]) is None


def test_pictures_whose_steps_differ_share_no_batch() -> None:
    adaptive = plan_of(recipe_sampler__name="dpm_adaptive")
    assert [len(group) for group in batches([adaptive.with_seed(i) for i in range(3)], 3)] == [1, 1, 1]


def test_network_rows_follow_the_interval() -> None:
    def plan(**flags: Any) -> Plan:
        return plan_of(recipe_steps=10, **flags)

    interval = {"unit": "step", "low": 3, "high": 5}
    assert network_rows(plan()) == 20
    assert network_rows(plan(recipe_guider__scale=1.0)) == 10
    assert network_rows(plan(recipe_guider__interval=interval)) == 3 * 2 + 7
    assert network_rows(plan(recipe_guider__interval=interval, recipe_guider__pag={})) == 3 * 3 + 7
    # Heun asks at the end of a step too: at the levels of steps 3, 4 and 5 twice each.
    assert network_rows(plan(recipe_guider__interval=interval, recipe_sampler__name="heun")) == 6 * 2 + 13
    assert plan(recipe_guider__interval=interval).model_calls() == 10


def test_a_sampler_named_by_a_flag_drops_options_of_the_presets_own(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('base = "sdxl-base-1.0"\n[recipe.sampler]\nname = "euler_ancestral"\neta = 0.5\n')
    assert plan_of(preset=str(recipe)).sampler.options() == {"eta": 0.5}
    assert plan_of(preset=str(recipe), recipe_sampler__name="dpmpp_2m").sampler.options() == {}
    kept = plan_of(preset=str(recipe), recipe_sampler__name="euler_ancestral", recipe_sampler__s_noise=1.1)
    assert kept.sampler.options() == {"s_noise": 1.1}


@given(
    prompt=text.filter(str.strip),
    negative=text,
    second=st.none() | text,
    seed=st.integers(0, 2**64 - 1),
    size=st.tuples(sides, sides),
    crop=st.tuples(st.integers(0, 9999), st.integers(0, 9999)),
    scale=reals,
    score=st.floats(0, 10),
    steps=st.integers(1, 1000),
    eta=st.none() | st.floats(0, 1e9),
)
def test_json_round_trips_exactly(
    prompt: str,
    negative: str,
    second: str | None,
    seed: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    scale: float,
    score: float,
    steps: int,
    eta: float | None,
) -> None:
    plan = plan_of(
        prompt,
        negative_2=second,
        seed=seed,
        recipe_negative=negative,
        recipe_size=size,
        recipe_crop_coords_top_left=crop,
        recipe_guider__scale=scale,
        recipe_aesthetic_score=score,
        recipe_steps=steps,
        recipe_sampler__name="euler_ancestral",
        recipe_sampler__eta=eta,
    )
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.sigmas() == plan.sigmas()
    assert "\n" not in plan.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "large"}, "size"),
        ({"size": [0, 8]}, r"size\.0"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "between 1 and 1000"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"colour": 1}, "colour"),
        ({"sampler": {"name": "dream"}}, "unknown sampler 'dream'"),
        ({"sampler": {"name": "lms", "eta": 1.0}}, "'lms' has no option 'eta'"),
        ({"steps": "30"}, "steps"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_when_read(change: dict[str, Any], message: str) -> None:
    table = json.loads(plan_of().to_json()) | change
    with pytest.raises(UsageError, match=message):
        Plan.from_json(json.dumps(table))


@pytest.mark.parametrize("broken", ["", "{", "[]", "null", '{"prompt": "a cat"}', b"\xff"])
def test_what_is_no_plan_is_refused(broken: str | bytes) -> None:
    with pytest.raises(UsageError, match="this is no plan"):
        Plan.from_json(broken)


@pytest.mark.parametrize(("size", "hint"), [((1000, 1001), "1000x1000"), ((1, 8), "8x8"), ((20, 29), "32x16")])
def test_a_size_that_is_no_multiple_of_8_gets_the_nearest(size: tuple[int, int], hint: str) -> None:
    with pytest.raises(UsageError, match=f"the size {size[1]}x{size[0]} does not divide by 8") as caught:
        plan_of(recipe_size=size)
    assert caught.value.hint == f"try {hint}"


def test_a_size_beyond_all_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="larger than 16384") as caught:
        plan_of(recipe_size=(1024, 10**6))
    assert caught.value.hint == "try 16384x1024"


@given(st.tuples(sides, sides))
def test_every_multiple_of_8_is_a_size(size: tuple[int, int]) -> None:
    check_size(size, tiny_config())


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_an_empty_prompt_must_be_meant(prompt: str) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        plan_of(prompt)
    assert plan_of(prompt, allow_empty_prompt=True).prompt == prompt


@pytest.mark.parametrize("name", ["prompt", "prompt_2", "negative", "negative_2"])
def test_text_that_is_not_utf_8_is_refused_by_name(name: str) -> None:
    bad = b"caf\xe9".decode("utf-8", "surrogateescape")
    flags = {"negative": {"recipe_negative": bad}}.get(name, {name: bad})
    with pytest.raises(UsageError, match=f"the {name} is not valid UTF-8: character 4"):
        plan_of(**{"prompt": "a cat", **flags})


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        plan_of(seed=seed)
    with pytest.raises(UsageError, match="seed"):
        plan_of().with_seed(seed)


def test_another_seed_changes_nothing_else() -> None:
    plan = plan_of(seed=5)
    assert plan.with_seed(6) == plan_of(seed=6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"recipe_sampler__name": "eulr"}, "did you mean euler"),
        ({"recipe_sampler__eta": 1.0}, "'euler' has no option 'eta'"),
        ({"recipe_steps": 1001}, "between 1 and 1000, not 1001"),
        ({"recipe_steps": 0}, "steps"),
        ({"recipe_discretization__rho": 7.0}, "legacy_ddpm"),
        ({"recipe_guider__name": "identity", "recipe_guider__scale": 7.0}, "no effect"),
        ({"recipe_size": (512, 512), "aspect": 1.5}, "a size and an aspect"),
        ({"aspect": math.nan}, "no shape"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(**flags)


def test_a_bad_schedule_is_a_schedule_error() -> None:
    with pytest.raises(ScheduleError):
        plan_of(recipe_steps=1001)


def test_an_aspect_takes_a_published_size() -> None:
    plan = plan_of(aspect=16 / 9)
    assert plan.size == plan.original_size == plan.target_size == (768, 1344)


def test_batches_are_neighbours_that_share_all_but_their_rows() -> None:
    cats = [plan_of(seed=i) for i in range(5)]
    dog = plan_of("a dog", recipe_negative="cat", recipe_crop_coords_top_left=(8, 8))
    wide, slow = plan_of(recipe_size=(512, 768)), plan_of(recipe_steps=31)
    groups = list(batches([*cats, dog, wide, slow, cats[0]], 4))
    assert groups == [tuple(cats[:4]), (cats[4], dog), (wide,), (slow,), (cats[0],)]


def test_no_plans_make_no_batch() -> None:
    assert list(batches([], 4)) == []
