import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_closed_form import legacy_ddpm
from support_tiny import tiny_config

from sdxl_core.batching import batches, total_calls
from sdxl_core.diffusion.discretization import edm, last_levels
from sdxl_core.errors import ScheduleError, UsageError
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import load_preset
from sdxl_core.resolutions import check_size
from sdxl_core.texts import split_prompt, token_report
from sdxl_core.work import network_rows

NO_PRESETS = Path(__file__).parent / "none"

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
sides = st.integers(1, 256).map(lambda n: 8 * n)
reals = st.floats(allow_nan=False, allow_infinity=False)


def plan_of(prompt: str = "a cat", preset: str = "sdxl-base-1.0", **flags: Any) -> Plan:
    """A plan as the command line makes it: `recipe_x_y` is the flag `recipe.x.y`, the rest goes to `build_plan`."""
    recipe = {key.replace("_", ".", 1): value for key, value in flags.items() if key.startswith("recipe_")}
    recipe = {key.replace("__", "."): value for key, value in recipe.items()}
    rest = {key: value for key, value in flags.items() if not key.startswith("recipe_")}
    return build_plan(load_preset(preset, recipe, user=NO_PRESETS), prompt, **rest)


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


def test_and_joins_prompts_with_weights() -> None:
    plan = plan_of("a cat AND a hat :0.8 AND\nblurry: -1", recipe_guider__pag={})
    assert [(request.prompt, weight) for request, weight in plan.requests()] == [
        ("a cat", 1.0),
        ("a hat", 0.8),
        ("blurry", -1.0),
    ]
    assert network_rows(plan) == 30 * (3 + 1 + 3)
    assert not plan.shares_batch(plan_of("a cat AND a hat", recipe_guider__pag={}))
    assert plan.shares_batch(plan_of("a AND b AND c", recipe_guider__pag={}))


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a cat :1.2", ["a cat :1.2"]),  # a weight of the only prompt would say nothing
        ("SAND and hAND", ["SAND and hAND"]),
        (r"SALT \AND PEPPER", ["SALT AND PEPPER"]),
        (r"SALT \AND PEPPER AND a jar:.5", ["SALT AND PEPPER", "a jar"]),
        ("at 10:30 sharp AND (b:1.3)", ["at 10:30 sharp", "(b:1.3)"]),
    ],
)
def test_only_the_word_in_capitals_joins(prompt: str, read: list[str]) -> None:
    assert [part.text for part in split_prompt(prompt)] == read


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"prompt": "a cat AND "}, "part 2 of the prompt is empty"),
        ({"prompt": "AND a cat"}, "part 1 of the prompt is empty"),
        ({"prompt": "a cat AND :2 AND b"}, "part 2 of the prompt is empty"),
        ({"prompt": "a :0 AND b :-1"}, "no part of the prompt has a weight above 0"),
        ({"prompt": "a AND b", "prompt_2": "c"}, "AND joins 2 prompts, and 1 for the second"),
    ],
)
def test_prompts_that_cannot_be_joined(prompts: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(**prompts)


def test_a_second_prompt_has_its_parts_too() -> None:
    plan = plan_of("a AND b :2", prompt_2="c :9 AND d")
    assert [(r.prompt, r.prompt_2, weight) for r, weight in plan.requests()] == [("a", "c", 1.0), ("b", "d", 2.0)]


def test_every_part_of_a_prompt_has_room_of_its_own() -> None:
    plan = plan_of(f"{'cat ' * 60} AND {'dog ' * 80}")
    assert [(c.tokens, c.lost) for c in token_report(plan, tiny_config()) if c.text == "prompt"] == [(80, 5)]


def test_the_token_report_counts_what_is_lost_in_every_text() -> None:
    plan = plan_of("cat " * 75, prompt_2="dog " * 80, recipe_negative="blurry")
    report = {count.text: (count.tokens, count.lost) for count in token_report(plan, tiny_config())}
    assert report == {"prompt": (75, 0), "prompt_2": (80, 5), "negative": (1, 0)}


def test_the_refiner_reads_one_prompt_with_one_tower() -> None:
    refiner = tiny_config("refiner")
    both = token_report(plan_of("cat " * 76, prompt_2="a dog"), refiner)
    assert [(count.text, count.lost) for count in both] == [("prompt_2", 0), ("negative", 0)]


def refined(mode: str = "share@0.8", **flags: Any) -> Plan:
    refiner = load_preset("sdxl-refiner-1.0", user=NO_PRESETS)
    return plan_of(recipe_refiner__mode=mode, refiner=refiner, **flags)


def test_the_base_names_its_refiner_and_the_way_to_hand_over() -> None:
    recipe = load_preset("sdxl-base-1.0", user=NO_PRESETS).recipe
    assert (recipe.refiner.preset, recipe.refiner.mode, recipe.refiner.use) == ("sdxl-refiner-1.0", "share@0.8", False)
    assert plan_of().refiner is None
    assert plan_of().refiner_sigmas() == ()


def test_two_models_share_one_schedule() -> None:
    plan = refined()
    assert plan.sigmas()[:-1] + plan.refiner_sigmas() == legacy_ddpm(30)
    assert plan.sigmas()[-1] == plan.refiner_sigmas()[0]
    assert plan.switch() is not None
    assert (len(plan.sigmas()) - 1, len(plan.refiner_sigmas()) - 1) == (24, 6)


def test_sdedit_follows_a_whole_run() -> None:
    plan = refined("sdedit@0.15")
    assert plan.switch() is None
    assert plan.sigmas() == legacy_ddpm(30)
    assert plan.refiner_sigmas() == last_levels(legacy_ddpm(30), 0.15)


@pytest.mark.parametrize(("mode", "sampler", "calls"), [("share@0.8", "heun", 59), ("sdedit@0.15", "euler", 34)])
def test_the_calls_of_both_models_are_counted(mode: str, sampler: str, calls: int) -> None:
    assert refined(mode, recipe_sampler__name=sampler).model_calls() == calls


def test_the_refiner_is_told_the_same_picture_in_its_own_way() -> None:
    plan = refined(recipe_negative="fog", recipe_size=(512, 768), seed=3)
    second = plan.refiner_plan()
    assert (second.model, second.file) == ("sdxl-refiner-1.0", "sd_xl_refiner_1.0.safetensors")
    assert second.file_sha256 == "7440042bbdc8a24813002c09b6b69b64dc90fded4472613437b7f55f9b7d9c5f"
    assert second.refiner is None
    assert second.empty_negative == "encode"
    changed = {"model", "file", "file_sha256", "empty_negative", "refiner"}
    assert second.model_dump(exclude=changed) == plan.model_dump(exclude=changed)
    with pytest.raises(ValueError, match="no refiner"):
        second.refiner_plan()


def test_scores_are_the_refiners_unless_the_recipe_gives_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "sdxl-refiner-1.0"\n[recipe]\naesthetic_score = 7.5\n')
    mine = load_preset(file, user=NO_PRESETS)
    assert plan_of(refiner=mine).aesthetic_score == 7.5
    assert plan_of(refiner=mine, recipe_aesthetic_score=5.0).aesthetic_score == 5.0
    assert (plan_of().aesthetic_score, plan_of().negative_aesthetic_score) == (6.0, 2.5)


def test_a_mode_that_speaks_of_steps_sets_them_unless_a_flag_does() -> None:
    plan = refined("steps@40/50")
    assert (plan.steps, len(plan.sigmas()) - 1, len(plan.refiner_sigmas()) - 1) == (50, 40, 10)
    assert refined("steps@40/50", recipe_steps=50) == plan
    with pytest.raises(UsageError, match="speaks of 50 steps, and there are 30"):
        refined("steps@40/50", recipe_steps=30)


@pytest.mark.parametrize("mode", ["share@0.999", "share@step=30", "share@sigma=100", "shared"])
def test_a_plan_that_cannot_be_handed_over_is_refused(mode: str) -> None:
    with pytest.raises(UsageError):
        refined(mode)


def test_models_of_different_latents_cannot_share_a_picture() -> None:
    refiner = load_preset("sdxl-refiner-1.0", {"model.first_stage.scale_factor": 0.18215}, user=NO_PRESETS)
    with pytest.raises(UsageError, match=r"sdxl-refiner-1\.0 cannot refine what sdxl-base-1\.0 draws"):
        plan_of(refiner=refiner)


def test_a_plan_with_a_refiner_reads_back_equal_and_shares_no_batch_with_one_without() -> None:
    plan = refined("steps@24/30")
    assert Plan.from_json(plan.to_json()) == plan
    assert not plan.shares_batch(plan_of())
    assert plan.shares_batch(plan.with_seed(9))
