"""What holds for every schedule of the table, and where names that sound alike differ."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import trained_levels
from sdxl_core.diffusion.schedules import SCHEDULES, check_schedule, resolve_schedule, resolve_sigmas
from sdxl_core.errors import ScheduleError, UsageError

SDXL = DenoiserConfig()
TABLE = trained_levels(SDXL).tolist()
LOW, HIGH = TABLE[0], TABLE[-1]
NAMED = sorted(set(SCHEDULES) - {"explicit"})

# Where a list does not start at the model's highest level, and where it does not end at 0.
STARTS = {
    "ddim_uniform": None,
    "leading": None,
    "leading_multistep": None,
    "vp": 152.17,
    "edm": 14.6146,
    "align_your_steps_a1111": 14.615,
}
STARTS |= {"align_your_steps_32": 14.615, "gits_forge": 14.615}
ENDS = {"kl_optimal_a1111": LOW}
MOST = {"turbo": 10, "lcm": 50}


def levels(name: str, n: int, denoiser: DenoiserConfig = SDXL, **options: Any) -> tuple[float, ...]:
    return resolve_sigmas(DiscretizationConfig(name=name, **options), n, denoiser)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("name", NAMED)
def test_a_list_falls_from_where_it_starts_to_where_it_ends(name: str, n: int) -> None:
    sigmas = levels(name, n)
    assert len(sigmas) == n + 1
    assert all(a > b for a, b in pairwise(sigmas))
    assert all(sigma == float(np.float32(sigma)) for sigma in sigmas)
    start = STARTS.get(name, HIGH)
    if start is None:
        top = n * (1000 // (n + 1)) if name == "leading_multistep" else (n - 1) * (1000 // n)
        assert sigmas[0] == TABLE[top + 1] < HIGH
    else:
        assert sigmas[0] == pytest.approx(start, rel=1e-4 if name == "vp" else 1e-6)
    assert sigmas[-1] == pytest.approx(ENDS.get(name, 0), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(NAMED), n=st.integers(1, 1000))
def test_any_length_is_a_list_or_an_error_that_helps(name: str, n: int) -> None:
    hint = ""
    sigmas: tuple[float, ...] = ()
    try:
        sigmas = levels(name, n)
    except ScheduleError as error:
        hint = error.hint or ""
    most = MOST.get(name, 1000)
    if n > min(most, 100) and not sigmas:
        assert hint
    else:
        assert n <= most
        assert len(sigmas) == n + 1
        assert all(a > b for a, b in pairwise(sigmas))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["edm", "karras", "exponential", "polyexponential", "kl_optimal", "beta_a1111"]),
    n=st.integers(2, 60),
    low=st.floats(0.002, 0.5),
    high=st.floats(1.0, 200.0),
)
def test_a_range_that_is_given_is_met_at_both_ends(name: str, n: int, low: float, high: float) -> None:
    sigmas = levels(name, n, sigma_min=low, sigma_max=high)
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[0] == pytest.approx(high, rel=1e-5)
    # float32 holds sigma^(1/7) to about 1e-7 of its larger end.
    assert sigmas[-2] == pytest.approx(low, rel=1e-4)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 100), alpha=st.floats(0.3, 3), beta=st.floats(0.3, 3))
def test_a_beta_list_falls_whatever_its_shape(n: int, alpha: float, beta: float) -> None:
    sigmas = levels("beta_continuous", n, alpha=alpha, beta=beta)
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[0] == HIGH


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 30), rho=st.floats(0.3, 3))
def test_a_higher_rho_is_lower_in_between(n: int, rho: float) -> None:
    one, other = levels("polyexponential", n, rho=rho), levels("polyexponential", n, rho=rho * 1.1)
    assert all(a >= b for a, b in zip(one, other, strict=True))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 40), mu=st.floats(-1, 1), beta=st.floats(0.2, 0.8))
def test_laplace_lists_are_symmetric_about_e_to_the_mu(n: int, mu: float, beta: float) -> None:
    sigmas = levels("laplace", n, mu=mu, beta=beta, sigma_min=1e-6, sigma_max=1e6)
    for a, b in zip(sigmas[:-1], sigmas[-2::-1], strict=True):
        assert np.log(a) + np.log(b) == pytest.approx(2 * mu, abs=1e-4)


@pytest.mark.parametrize("scaling", ["edm", "edm_v", "flow"])
@pytest.mark.parametrize("name", ["normal", "trailing", "karras", "exponential", "beta", "kl_optimal", "smoothstep"])
def test_a_schedule_walks_the_range_of_another_model(name: str, scaling: Any) -> None:
    denoiser = DenoiserConfig(scaling=scaling)
    table = trained_levels(denoiser)
    sigmas = levels(name, 12, denoiser)
    assert sigmas[0] == pytest.approx(float(table[-1]), rel=1e-5)
    assert all(a > b for a, b in pairwise(sigmas))


def test_three_lists_are_called_beta() -> None:
    comfy, continuous, a1111 = (levels(name, 20) for name in ("beta", "beta_continuous", "beta_a1111"))
    assert max(abs(np.log(np.divide(comfy[:-1], continuous[:-1])))) < 0.02
    assert comfy != continuous
    assert [sum(0 < sigma < 1 for sigma in sigmas) for sigmas in (comfy, a1111)] == [7, 3]


def test_two_lists_are_called_kl_optimal() -> None:
    comfy, a1111 = levels("kl_optimal", 21), levels("kl_optimal_a1111", 20)
    assert comfy == (*a1111, 0.0)


def test_two_lists_are_called_align_your_steps() -> None:
    comfy, a1111 = levels("align_your_steps", 10), levels("align_your_steps_a1111", 10)
    assert (round(comfy[-2], 4), round(a1111[-2], 4)) == (0.1114, 0.0290)


def test_two_lists_are_called_turbo() -> None:
    assert levels("turbo", 4)[3] == TABLE[699]
    assert levels("turbo_forge", 4)[3] == TABLE[249]
    assert levels("turbo_forge", 4) == levels("trailing", 4)
    assert levels("turbo_forge", 16) != levels("trailing", 16)  # halves are rounded the other way


def test_ddim_uniform_takes_the_steps_that_were_asked_for() -> None:
    assert len(levels("ddim_uniform", 30)) == 31
    assert levels("ddim_uniform", 30) == levels("leading", 30, steps_offset=1)
    assert levels("leading", 30, steps_offset=0)[-2] == LOW


def test_a_list_of_ones_own_is_walked_as_it_is() -> None:
    assert levels("explicit", 3, sigmas=(8.0, 4.0, 0.5, 0.25)) == (8.0, 4.0, 0.5, 0.25)
    with pytest.raises(ScheduleError, match="takes 3 steps, not 5") as caught:
        levels("explicit", 5, sigmas=(8.0, 4.0, 0.5, 0.0))
    assert caught.value.hint == "set the steps to 3"


@pytest.mark.parametrize(
    ("name", "n", "options", "message"),
    [
        ("karras", 0, {}, "between 1 and 1000, not 0"),
        ("karras", 1001, {}, "between 1 and 1000, not 1001"),
        ("karras", 9, {"rho": 0.0}, "rho of schedule 'karras' must be a positive number, not 0"),
        ("edm", 9, {"rho": -1}, "rho of schedule 'edm' must be a positive number, not -1"),
        ("exponential", 9, {"sigma_min": 5.0, "sigma_max": 5.0}, "must be positive and rise"),
        ("kl_optimal", 9, {"sigma_min": 20.0}, "sigma_min 20 and sigma_max 14.6146 must be positive and rise"),
        ("normal", 9, {"rho": 7.0}, "'normal' has no option 'rho'"),
        ("beta", 9, {"alfa": 0.5}, "did you mean alpha"),
        ("beta", 200, {}, "beta cannot give 200 distinct levels"),
        ("smoothstep", 900, {}, "smoothstep cannot give 900 distinct levels"),
        ("turbo", 11, {}, "turbo schedule has 10 levels, not 11"),
        ("lcm", 51, {}, "chooses from 50 levels"),
        ("leading", 1000, {}, "timestep 1000 is beyond the last"),
        ("leading", 10, {"steps_offset": 1.5}, "a whole number"),
        ("gits", 10, {"coefficient": 1.22}, "must be 0.8, 0.85"),
        ("laplace", 500, {}, "distinct levels"),
        ("vp", 10, {"beta_d": 1e9}, "too large"),
        ("explicit", 1, {"sigmas": (1.0,)}, "at least two"),
        ("explicit", 2, {"sigmas": (1.0, 2.0, 0.0)}, "must decrease, but level 0 is 1.0 and level 1 2.0"),
        ("explicit", 2, {"sigmas": (1.0, float("nan"), 0.0)}, "noise level 1 is nan"),
        ("explicit", 2, {"sigmas": "1, 0"}, "a list of numbers"),
    ],
)
def test_a_list_that_cannot_be_is_one_error(name: str, n: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        levels(name, n, **options)


def test_an_unknown_schedule_has_a_suggestion() -> None:
    with pytest.raises(ScheduleError, match="unknown schedule 'karas'; did you mean karras"):
        resolve_schedule("karas")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_row_says_what_it_is_and_takes_its_own_defaults(name: str) -> None:
    row = SCHEDULES[name]
    assert row.name == name
    assert row.summary.count("\n") == 0
    assert 10 < len(row.summary) < 118
    assert row.source
    assert set(row.allowed) <= set(row.options)
    check_schedule(name, {option: value for option, value in row.options.items() if value is not None})
