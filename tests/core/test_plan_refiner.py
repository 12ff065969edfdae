"""A plan with a second model."""

from pathlib import Path
from typing import Any

import pytest
from support_closed_form import legacy_ddpm
from support_plans import NO_PRESETS, plan_of

from sdxl_core.diffusion.discretization import last_levels
from sdxl_core.errors import UsageError
from sdxl_core.plan import Plan
from sdxl_core.presets import load_preset


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
