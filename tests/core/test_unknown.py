"""Names that nobody knows: what they most likely stand for, and the error that says so."""

import pytest

from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.diffusion.schedules import SCHEDULES
from sdxl_core.errors import ScheduleError
from sdxl_core.prediction import PREDICTIONS
from sdxl_core.unknown import nearest, suggestion, unknown


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("eular", SAMPLERS, "euler"),
        ("euler_a", SAMPLERS, "euler_ancestral"),
        ("unipc", SAMPLERS, "uni_pc"),
        ("kerras", SCHEDULES, "karras"),
        ("v_pred", PREDICTIONS, "v"),
        ("v-prediction", PREDICTIONS, "v"),
        ("rho", ("r", "eta", "s_noise"), None),
        ("", SAMPLERS, None),
        ("a fox", (), None),
    ],
)
def test_a_name_goes_on_is_spelled_alike_or_stops_earlier(word: str, known: tuple[str, ...], meant: str | None) -> None:
    assert nearest(word, known) == meant
    assert suggestion(word, known) == (f"; did you mean {meant}?" if meant else "")


def test_the_longest_name_that_the_word_goes_on_from_is_meant() -> None:
    assert nearest("v_ztsnr_of_another_program", PREDICTIONS) == "v_ztsnr"


def test_every_known_name_with_a_letter_missing_is_found() -> None:
    for name in (*SAMPLERS, *SCHEDULES):
        if len(name) > 3:
            assert nearest(name[1:], [name]) == name


def test_the_error_names_the_word_and_lists_what_there_is() -> None:
    error = unknown("schedule", "kerras", ("karras", "beta"), error=ScheduleError)
    assert type(error) is ScheduleError
    assert error.message == "unknown schedule 'kerras'; did you mean karras?"
    assert error.hint == "one of: karras, beta"
    assert unknown("dtype", "fp", ("fp16", "float16"), shown=("float16",)).hint == "one of: float16"
