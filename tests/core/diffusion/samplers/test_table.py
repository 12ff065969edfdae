import math
from typing import Any

import pytest
import tomli
from pydantic import ValidationError
from support_closed_form import legacy_ddpm

from sdxl_cli.toml_text import to_toml
from sdxl_core.config import SamplerConfig
from sdxl_core.diffusion.samplers import SAMPLERS, check_options, model_calls, resolve_sampler
from sdxl_core.errors import UsageError


def test_the_six_samplers_of_the_original_are_there() -> None:
    assert set(SAMPLERS) >= {"euler", "heun", "euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m", "lms"}


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SAMPLERS["mine"] = SAMPLERS["euler"]  # type: ignore[index]


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_option_goes_through_toml_and_json(name: str) -> None:
    options = {key: value for key, value in SAMPLERS[name].options.items() if value != math.inf}
    config = SamplerConfig(name=name, **options)  # type: ignore[arg-type]
    assert config.options() == options
    assert SamplerConfig.model_validate_json(config.model_dump_json()) == config
    assert SamplerConfig(**tomli.loads(to_toml(config.model_dump()))) == config


def test_an_option_that_is_none_is_not_set() -> None:
    assert SamplerConfig(name="euler", s_churn=None).options() == {}  # type: ignore[call-arg]


def test_no_option_is_set_to_what_json_cannot_say() -> None:
    with pytest.raises(ValidationError, match="s_tmax must be finite"):
        SamplerConfig(name="euler", s_tmax=math.inf)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_defaults_are_accepted(name: str) -> None:
    check_options(name, SAMPLERS[name].options)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_row_says_what_it_is_and_what_its_words_may_be(name: str) -> None:
    sampler = SAMPLERS[name]
    assert 3 <= len(sampler.summary) <= 80
    assert not sampler.summary.endswith(".")
    assert set(sampler.allowed) <= set(sampler.options)
    words = {option for option, default in sampler.options.items() if isinstance(default, str)}
    assert words <= set(sampler.allowed), "a word must be one of a list"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eular", {}, "unknown sampler 'eular'; did you mean euler?"),
        ("dpmpp_2m", {"eta": 1.0}, "sampler 'dpmpp_2m' has no option 'eta'"),
        ("euler", {"s_chrun": 1.0}, "sampler 'euler' has no option 's_chrun'; did you mean s_churn?"),
        ("euler", {"noise": 1.0}, "sampler 'euler' has no option 'noise'"),
        ("euler", {"s_churn": -1.0}, "s_churn of sampler 'euler' must be a number of at least 0, not -1.0"),
        ("euler", {"s_churn": float("inf")}, "must be a number of at least 0, not inf"),
        ("euler_ancestral", {"eta": float("nan")}, "must be a number of at least 0, not nan"),
        ("lms", {"order": 5}, "order of sampler 'lms' must be 1, 2, 3 or 4, not 5"),
        ("lms", {"order": 2.5}, "must be 1, 2, 3 or 4, not 2.5"),
        ("lms", {"order": True}, "must be 1, 2, 3 or 4, not true"),
        ("euler", {"s_churn": True}, "must be a number of at least 0, not true"),
        ("euler", {"s_churn": "much"}, "must be a number of at least 0, not 'much'"),
        ("restart", {"restarts": 1000000}, "must be a whole number from 0 to 100, not 1000000"),
        ("euler", {"s_churn": (1.0,)}, "must be a number of at least 0, not [1.0]"),
    ],
)
def test_what_a_sampler_does_not_take_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(name, options)
    assert message in caught.value.message
    with pytest.raises(UsageError):
        model_calls(name, (1.0, 0.0), options)


def test_hints_name_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_sampler("dream")
    assert caught.value.hint == f"one of: {', '.join(SAMPLERS)}"
    with pytest.raises(UsageError) as caught:
        check_options("dpmpp_2m", {"eta": 1.0})
    assert caught.value.hint == "it takes no options"
    with pytest.raises(UsageError) as caught:
        check_options("euler_ancestral", {"rho": 1.0})
    assert caught.value.hint == "it takes eta, s_noise"


@pytest.mark.parametrize(
    ("name", "calls"),
    [("euler", 30), ("heun", 59), ("euler_ancestral", 30), ("dpmpp_2s_ancestral", 59), ("dpmpp_2m", 30), ("lms", 30)],
)
def test_calls_of_thirty_steps(name: str, calls: int) -> None:
    assert model_calls(name, legacy_ddpm(30)) == calls
