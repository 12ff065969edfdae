from typing import get_args

import pytest
from support_tiny import tiny_config

from sdxl_core.compat import PROGRAMS, WORDS, Conventions, conventions_of, empty_negative, resolve_program
from sdxl_core.config import DiscretizationConfig, ProgramName, RecipeConfig, SourceConfig
from sdxl_core.diffusion.schedules import SCHEDULES
from sdxl_core.errors import UsageError
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import Preset
from sdxl_core.source import SourceFile, build_source


def plan_of(**recipe: object) -> Plan:
    return build_plan(Preset("tiny", "", tiny_config(), RecipeConfig.model_validate(recipe), {}), "a cat", seed=5)


def test_every_program_has_a_row_and_every_value_its_words() -> None:
    assert set(PROGRAMS) == set(get_args(ProgramName))
    assert set(WORDS) == set(Conventions.model_fields)
    for name, words in WORDS.items():
        annotation = Conventions.model_fields[name].annotation
        assert set(words) == ({True, False} if annotation is bool else set(get_args(annotation)))


def test_without_a_program_the_conventions_are_our_own() -> None:
    plan = plan_of()
    assert plan.compat is None
    assert plan.conventions == Conventions()
    assert plan.empty_negative == "zeros"


@pytest.mark.parametrize(
    ("program", "start", "snap", "batch_noise", "noise", "negative"),
    [
        ("a1111", "sigma", "none", "per_picture", "cuda", "encode"),
        ("comfy", "root_at_top", "index", "one_stream", "cpu", "encode"),
        ("diffusers", "root", "none", "one_stream", "cpu", "zeros"),
        ("sgm", "root", "level", "one_stream", "cuda", "zeros"),
    ],
)
def test_a_program_sets_what_is_known_of_it(
    program: str, start: str, snap: str, batch_noise: str, noise: str, negative: str
) -> None:
    plan = plan_of(compat=program)
    assert plan.compat == program
    assert plan.conventions.model_dump() == {
        "start": start,
        "snap": snap,
        "drop_penultimate": False,
        "batch_noise": batch_noise,
        "noise": noise,
        "strength": {"a1111": "below_one", "comfy": "exact", "diffusers": "truncated", "sgm": "levels"}[program],
    }
    assert plan.empty_negative == negative
    assert Plan.from_json(plan.to_json()) == plan


def test_a_refiner_was_never_trained_with_zeros() -> None:
    assert {empty_negative(program, "refiner") for program in (None, *PROGRAMS)} == {"encode"}


@pytest.mark.parametrize(
    ("program", "samplers"),
    [
        (None, set()),
        ("a1111", {"dpm_2", "dpm_2_ancestral", "dpmpp_3m_sde"}),
        ("comfy", {"dpm_2", "dpm_2_ancestral", "uni_pc"}),
        ("diffusers", set()),
    ],
)
def test_some_samplers_leave_out_the_last_level(program: ProgramName | None, samplers: set[str]) -> None:
    asked = {"euler", "dpm_2", "dpm_2_ancestral", "uni_pc", "dpmpp_3m_sde"}
    assert {name for name in asked if conventions_of(program, name, "karras").drop_penultimate} == samplers


def test_a_list_without_its_last_level_has_as_many_steps() -> None:
    plan = plan_of(steps=9).model_copy(update={"conventions": Conventions(drop_penultimate=True)})
    whole = plan_of(steps=10).sigmas()
    assert plan.sigmas() == (*whole[:-2], 0.0)
    assert plan.model_calls() == 9


def test_diffusers_starts_by_the_spacing_and_the_scheduler() -> None:
    starts = {s: conventions_of("diffusers", "euler", s).start for s in ("leading", "trailing", "linspace", "karras")}
    assert starts == {"leading": "root", "trailing": "sigma", "linspace": "sigma", "karras": "root"}
    assert conventions_of("diffusers", "dpmpp_2m", "trailing").start == "root"


def test_every_name_in_the_table_is_one_of_ours() -> None:
    for program in PROGRAMS.values():
        for habits in (program.habits, *program.others.values()):
            names = {*habits.schedules, *habits.schedules.values(), *habits.sigma_start}
            assert names <= set(SCHEDULES)
            assert habits.ends_of is None or habits.ends_of in SCHEDULES
        samplers = [name for group in program.others for name in group]
        assert len(samplers) == len(set(samplers))


def test_the_name_of_a_schedule_means_what_it_does_there() -> None:
    def meant(program: str | None, name: str, sampler: str = "euler", **options: float) -> DiscretizationConfig:
        schedule = {"name": name, **options}
        return plan_of(compat=program, steps=10, sampler={"name": sampler}, discretization=schedule).discretization

    assert meant(None, "beta") == meant("comfy", "beta") == DiscretizationConfig(name="beta")
    assert meant("a1111", "beta").name == "beta_a1111"
    assert meant("a1111", "turbo").name == "turbo_forge"
    assert meant("a1111", "karras") == DiscretizationConfig(name="karras")
    ends = {"sigma_max": pytest.approx(8.3907, abs=5e-5), "sigma_min": pytest.approx(0.0413, abs=5e-5)}
    assert meant("diffusers", "karras").options() == ends  # of timesteps 901 and 1
    assert meant("diffusers", "beta").options() == ends
    assert meant("diffusers", "karras", sigma_max=20.0).options() == {**ends, "sigma_max": 20.0}
    assert meant("diffusers", "karras", "dpmpp_2m").options() == {}
    assert meant("diffusers", "leading", "dpmpp_2m").name == "leading_multistep"


@pytest.mark.parametrize(
    ("program", "strength", "steps"),
    [
        (None, 0.29, 29), (None, 1.0, 100), (None, 0.001, 1),
        ("diffusers", 0.29, 28), ("diffusers", 0.3, 30), ("diffusers", 1.0, 100),
        ("a1111", 0.3, 30), ("a1111", 1.0, 99),
        ("comfy", 0.3, 100), ("comfy", 1.0, 100),
        ("sgm", 0.15, 14), ("sgm", 0.5, 49), ("sgm", 0.001, 1),
    ],
)  # fmt: skip
def test_a_strength_is_as_many_steps_as_there(program: str | None, strength: float, steps: int) -> None:
    plan, source = plan_of(compat=program, steps=100), SourceConfig(strength=strength)
    file = SourceFile(name="a.png", sha256="0", size=(64, 64))
    plan = plan.model_copy(update={"source": build_source(tiny_config(), source, file)})
    sigmas = plan.sigmas()
    assert len(sigmas) == steps + 1
    total = int(100 / strength) if program == "comfy" else 100
    whole = plan_of(steps=total).sigmas()
    assert sigmas == whole[-steps - 1 :]


def test_pictures_are_seeds_or_rows() -> None:
    def drawn(plan: Plan) -> list[tuple[int, int, int]]:
        return [(p.seed, p.batch_row, p.batch_rows) for p in plan.pictures(3)]

    assert drawn(plan_of()) == drawn(plan_of(compat="a1111")) == [(5, 0, 1), (6, 0, 1), (7, 0, 1)]
    assert drawn(plan_of(compat="comfy")) == [(5, 0, 3), (5, 1, 3), (5, 2, 3)]
    first, second = plan_of(compat="comfy").pictures(2)
    assert first.shares_batch(second)
    assert not first.shares_batch(plan_of(compat="diffusers"))


def test_a_row_is_one_of_the_rows() -> None:
    with pytest.raises(UsageError, match="batch_row 2 is not below batch_rows 2"):
        Plan.from_json(plan_of().model_copy(update={"batch_row": 2, "batch_rows": 2}).to_json())


def test_an_unknown_program_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown program 'comfyui'; did you mean comfy"):
        resolve_program("comfyui")
