"""What strength means."""

import pytest
from support_tiny import tiny_config

from sdxl_core.config import ModelConfig, SourceConfig
from sdxl_core.errors import ScheduleError, UsageError
from sdxl_core.source import Source, SourceFile, build_source

FILE = SourceFile(name="a.png", sha256="0" * 64, size=(64, 64))


def source_of(strength: float | None = None, exact: bool = False, model: ModelConfig | None = None) -> Source:
    return build_source(model or tiny_config(), SourceConfig(strength=strength, steps_exact=exact), FILE)


@pytest.mark.parametrize(("steps", "strength", "total"), [(9, 0.3, 30), (30, 0.5, 60), (30, 1.0, 30), (10, 0.99, 10)])
def test_exactly_n_steps_are_the_end_of_a_longer_schedule(steps: int, strength: float, total: int) -> None:
    assert source_of(strength, exact=True).schedule_steps(steps) == total
    assert source_of(strength).schedule_steps(steps) == steps


@pytest.mark.parametrize("strength", [0.0005, 5e-324])
def test_no_schedule_is_longer_than_a_thousand_steps(strength: float) -> None:
    with pytest.raises(ScheduleError, match="are the end of a schedule of"):
        source_of(strength, exact=True).schedule_steps(1)


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
