"""What strength means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_tiny import tiny_config

from sdxl_core.config import ModelConfig, SourceConfig
from sdxl_core.errors import UsageError
from sdxl_core.source import Source, SourceFile, build_source

FILE = SourceFile(name="a.png", sha256="0" * 64, size=(64, 64))


def source_of(strength: float | None = None, exact: bool = False, model: ModelConfig | None = None) -> Source:
    return build_source(model or tiny_config(), SourceConfig(strength=strength, steps_exact=exact), FILE)


@pytest.mark.parametrize(
    ("steps", "strength", "walked"),
    [(30, 0.3, 9), (100, 0.29, 29), (10, 0.7, 7), (30, 0.35, 10), (30, 0.01, 1), (1, 0.5, 1), (30, 1.0, 30)],
)
def test_strength_is_the_share_of_the_steps_that_is_walked(steps: int, strength: float, walked: int) -> None:
    source = source_of(strength)
    assert (source.walked(steps), source.schedule_steps(steps)) == (walked, steps)


@pytest.mark.parametrize(("steps", "strength", "total"), [(9, 0.3, 30), (30, 0.5, 60), (30, 1.0, 30), (10, 0.99, 10)])
def test_exactly_n_steps_are_the_end_of_a_longer_schedule(steps: int, strength: float, total: int) -> None:
    source = source_of(strength, exact=True)
    assert (source.walked(steps), source.schedule_steps(steps)) == (steps, total)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_min=True), st.booleans())
def test_there_is_always_a_step_and_never_one_too_many(steps: int, strength: float, exact: bool) -> None:
    source = source_of(strength, exact)
    assert 1 <= source.walked(steps) <= source.schedule_steps(steps)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True))
def test_more_strength_is_never_fewer_steps(steps: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert source_of(low).walked(steps) <= source_of(high).walked(steps)


def test_the_strength_that_nobody_gave() -> None:
    model, how = tiny_config(), SourceConfig()
    edit = model.model_copy(update={"kind": "edit"})
    assert build_source(model, how, FILE).strength == 0.6
    assert build_source(model, how, FILE, FILE).strength == 1
    assert build_source(model, how, FILE, margins=(8, 0, 0, 0)).strength == 1
    assert build_source(edit, how, FILE).strength == 1
    assert build_source(model, SourceConfig(strength=0.2), FILE, FILE).strength == 0.2


def test_an_inpainting_model_must_know_what_to_paint() -> None:
    model = tiny_config().model_copy(update={"kind": "inpaint"})
    with pytest.raises(UsageError, match="is an inpainting model, and nothing says what to paint"):
        build_source(model, SourceConfig(), FILE)
    assert build_source(model, SourceConfig(), FILE, FILE).condition == "inpaint"


@pytest.mark.parametrize("strength", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_strength_lies_above_0_and_up_to_1(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        SourceConfig(strength=strength)
