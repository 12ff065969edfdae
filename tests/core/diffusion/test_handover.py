import pytest

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import last_levels, legacy_ddpm_table
from sdxl_core.diffusion.handover import EXAMPLES, Handover, find_switch, parse_handover
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.errors import ScheduleError, UsageError

DENOISER = DenoiserConfig()


def levels(steps: int, name: str = "legacy_ddpm") -> tuple[float, ...]:
    return resolve_sigmas(DiscretizationConfig.model_validate({"name": name}), steps, DENOISER)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("share@0.8", ("fraction", 0.8, None)),
        ("share@.8", ("fraction", 0.8, None)),
        (" share@step=24 ", ("step", 24, None)),
        ("share@sigma=0.4", ("sigma", 0.4, None)),
        ("steps@40/50", ("step", 40, 50)),
        ("sdedit@0.15", ("strength", 0.15, None)),
        ("sdedit@1", ("strength", 1.0, None)),
    ],
)
def test_every_form_is_understood(text: str, meant: tuple[object, ...]) -> None:
    found = parse_handover(text)
    assert (found.unit, found.value, found.steps) == meant
    assert found.text == text.strip()


@pytest.mark.parametrize(
    "text", ["", "0.8", "shar@0.8", "share@", "share@-0.2", "share@nan", "share@step=2.5", "steps@40", "sdedit"]
)
def test_anything_else_is_refused_and_the_forms_are_shown(text: str) -> None:
    with pytest.raises(UsageError, match="unknown way to hand over") as caught:
        parse_handover(text)
    assert all(example in (caught.value.hint or "") for example in EXAMPLES)


def test_a_slip_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"did you mean sdedit@0.15\?"):
        parse_handover("sdedti@0.15")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share@0", "fraction must be between 0 and 1"),
        ("share@1.0", "fraction must be between 0 and 1"),
        ("share@24", "fraction must be between 0 and 1"),
        ("share@step=0", "step must be above 0"),
        ("share@sigma=0", "sigma must be above 0"),
        ("sdedit@0", "strength must be above 0 and at most 1"),
        ("sdedit@1.2", "strength must be above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_handover(text)


def test_a_step_in_place_of_a_fraction_is_told_how_to_be_written() -> None:
    with pytest.raises(UsageError) as caught:
        parse_handover("share@24")
    assert "share@step=24" in (caught.value.hint or "")


@pytest.mark.parametrize("steps", [5, 20, 30, 50, 1000])
@pytest.mark.parametrize("name", ["legacy_ddpm", "edm"])
def test_a_fraction_hands_over_at_the_first_level_of_the_last_timesteps(steps: int, name: str) -> None:
    sigmas = levels(steps, name)
    switch = find_switch(parse_handover("share@0.8"), sigmas, DENOISER)
    lowest = float(legacy_ddpm_table()[200])
    assert sigmas[switch.step] == switch.sigma < lowest <= sigmas[switch.step - 1]
    assert switch.fraction >= 0.8 - 1e-12


def test_the_published_schedule_hands_over_at_four_fifths_of_the_steps() -> None:
    switch = find_switch(parse_handover("share@0.8"), levels(30), DENOISER)
    assert (switch.step, switch.fraction) == (24, pytest.approx(0.801))
    assert switch.sigma == float(legacy_ddpm_table()[199])


def test_step_sigma_and_fraction_name_the_same_place() -> None:
    sigmas = levels(30)
    wanted = find_switch(parse_handover("share@step=24"), sigmas, DENOISER)
    for text in ("share@0.8", f"share@sigma={wanted.sigma}", f"share@sigma={wanted.sigma * 1.01:.6f}", "steps@24/30"):
        assert find_switch(parse_handover(text), sigmas, DENOISER) == wanted


def test_every_inner_step_can_be_the_switch() -> None:
    sigmas = levels(30)
    for step in range(1, 30):
        assert find_switch(parse_handover(f"share@step={step}"), sigmas, DENOISER).sigma == sigmas[step]


@pytest.mark.parametrize(
    ("text", "steps", "idle"),
    [
        ("share@step=30", 30, "second"),
        ("share@step=99", 30, "second"),
        ("share@0.999", 30, "second"),
        ("share@0.8", 4, "second"),
        ("share@sigma=0.001", 30, "second"),
        ("share@sigma=20", 30, "first"),
        ("share@0.0001", 30, "first"),
        ("share@0.5", 1, "second"),
    ],
)
def test_a_switch_outside_the_schedule_is_refused(text: str, steps: int, idle: str) -> None:
    with pytest.raises(ScheduleError, match=f"outside the schedule of {steps} steps?: the {idle} model") as caught:
        find_switch(parse_handover(text), levels(steps), DENOISER)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("strength", "steps", "walked"),
    [(0.3, 30, 9), (0.15, 30, 4), (0.29, 100, 29), (1.0, 30, 30), (0.001, 30, 1), (0.5, 1, 1)],
)
def test_a_strength_is_that_share_of_the_steps_and_never_none(strength: float, steps: int, walked: int) -> None:
    sigmas = levels(steps)
    assert last_levels(sigmas, strength) == sigmas[-walked - 1 :]


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ScheduleError, match="strength must be above 0 and at most 1"):
        last_levels(levels(30), strength)


def test_a_handover_is_a_value() -> None:
    assert parse_handover("share@0.8") == Handover("share@0.8", "fraction", 0.8)
