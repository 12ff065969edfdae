import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from support_closed_form import legacy_ddpm

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import (
    alpha_bars,
    edm,
    legacy_ddpm_table,
    legacy_ddpm_timesteps,
    linear_betas,
    sigma_to_fractional_timestep,
    sigma_to_timestep,
    trained_levels,
    trained_range,
    zero_terminal_alpha_bars,
)
from sdxl_core.diffusion.levels import check_sigmas
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.errors import ScheduleError, UsageError

PUBLISHED = json.loads((Path(__file__).parents[2] / "data" / "sigma_tables.json").read_text(encoding="utf-8"))


def test_legacy_ddpm_is_the_published_list_in_every_digit() -> None:
    assert legacy_ddpm(50) == (*PUBLISHED["legacy_ddpm_linear_start_0.00085_end_0.012_n50"], 0.0)


def test_edm_is_the_published_list_in_every_digit() -> None:
    assert edm(20, 0.002, 80.0, 7.0) == (*PUBLISHED["edm_sigma_min_0.002_sigma_max_80_rho_7_n20"], 0.0)


def test_betas_are_the_published_list_in_every_digit() -> None:
    assert linear_betas(20, 1e-4, 2e-2).tolist() == PUBLISHED["betas_linear_start_1e-4_end_2e-2_n20"]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 50, 333, 1000])
def test_edm_is_the_formula_in_torch(n: int) -> None:
    low, high = 0.0292 ** (1 / 3), 14.6146 ** (1 / 3)
    expected = (high + torch.linspace(0, 1, n) * (low - high)) ** 3
    # torch raises to the third power by two float32 products; one unit in the last place apart.
    np.testing.assert_allclose(edm(n)[:-1], expected.numpy(), rtol=1.2e-7)


def test_table_is_that_of_diffusers_and_ascends() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    kept = scheduler.alphas_cumprod.double()
    table = legacy_ddpm_table()
    # diffusers multiplies a thousand betas in float32.
    np.testing.assert_allclose(table, ((1 - kept) / kept).sqrt().numpy(), rtol=2e-4)
    assert table.shape == (1000,)
    assert table.dtype == np.float32
    assert (np.diff(table) > 0).all()
    assert math.isclose(table[0], 0.0291671582, rel_tol=1e-7)
    assert math.isclose(table[-1], 14.6146412293, rel_tol=1e-7)


def test_alpha_bar_and_sigma_say_the_same() -> None:
    table = legacy_ddpm_table().astype(np.float64)
    np.testing.assert_allclose(1 / (1 + table**2), alpha_bars(linear_betas()), rtol=1e-6)


def test_legacy_timesteps_begin_at_the_last_and_are_cut_to_whole_numbers() -> None:
    assert legacy_ddpm_timesteps(10) == (999, 899, 799, 699, 599, 499, 399, 299, 199, 99)
    assert legacy_ddpm_timesteps(30)[:8] == (999, 965, 932, 899, 865, 832, 799, 765)
    assert legacy_ddpm_timesteps(1000) == tuple(range(999, -1, -1))
    assert legacy_ddpm_timesteps(1) == (999,)


@given(st.integers(1, 1000))
def test_legacy_ddpm_decreases_from_the_highest_level_to_zero(n: int) -> None:
    sigmas = legacy_ddpm(n)
    table = legacy_ddpm_table()
    assert len(sigmas) == n + 1
    assert sigmas[0] == float(table[-1])
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))
    assert [sigma_to_timestep(s, table) for s in sigmas[:-1]] == list(legacy_ddpm_timesteps(n))


@given(
    n=st.integers(2, 1000),
    low=st.floats(0.001, 0.5),
    high=st.floats(1.0, 500.0),
    rho=st.floats(1.0, 10.0),
)
def test_edm_decreases_and_meets_both_ends(n: int, low: float, high: float, rho: float) -> None:
    sigmas = edm(n, low, high, rho)
    assert len(sigmas) == n + 1
    assert all(a > b for a, b in pairwise(sigmas))
    assert math.isclose(sigmas[0], high, rel_tol=2e-6)
    # float32 holds sigma^(1/rho) between the two ends to about 1e-7 of the larger one.
    assert math.isclose(sigmas[-2], low, rel_tol=2e-7 * rho * (high / low) ** (1 / rho))
    assert sigmas[-1] == 0
    assert all(s == float(np.float32(s)) for s in sigmas)


def test_edm_of_one_step_is_the_highest_level() -> None:
    sigmas = edm(1)
    assert len(sigmas) == 2
    assert math.isclose(sigmas[0], 14.6146, rel_tol=2e-7)


def test_edm_of_rho_one_is_a_straight_line() -> None:
    sigmas = edm(5, 1.0, 9.0, 1.0)
    np.testing.assert_allclose(sigmas, [9, 7, 5, 3, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("n", [0, -3, 1001])
def test_a_number_of_steps_that_no_table_has_is_refused(n: int) -> None:
    with pytest.raises(ScheduleError, match=f"between 1 and 1000, not {n}"):
        legacy_ddpm(n)
    with pytest.raises(ScheduleError, match=f"between 1 and 1000, not {n}"):
        edm(n)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sigma_min": 0.0}, "sigma_min 0.0"),
        ({"sigma_min": -1.0}, "sigma_min -1.0"),
        ({"sigma_min": 20.0}, "sigma_min 20.0"),
        ({"sigma_min": math.nan}, "sigma_min nan"),
        ({"sigma_max": math.inf}, "sigma_max inf"),
        ({"sigma_max": math.nan}, "sigma_max nan"),
        ({"sigma_max": 0.0292}, "sigma_max 0.0292"),
        ({"rho": 0.0}, "rho must be"),
        ({"rho": -7.0}, "rho must be"),
        ({"rho": math.nan}, "rho must be"),
        ({"rho": math.inf}, "rho must be"),
        ({"rho": 0.001}, "rho 0.001 is too small"),
        ({"rho": 1e9}, "must decrease"),
        ({"sigma_min": 1e-60}, "must decrease"),
        ({"sigma_max": 1e60}, "not a finite number"),
        ({"sigma_max": 1e300, "rho": 1.0}, "not a finite number"),
    ],
)
def test_bad_edm_options_are_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(ScheduleError, match=named):
        edm(20, **options)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 0.1), (0.1, 1.0), (math.nan, 0.1)])
def test_betas_outside_their_range_are_refused(start: float, end: float) -> None:
    with pytest.raises(ScheduleError, match="must rise between 0 and 1"):
        linear_betas(10, start, end)


@given(st.floats(1e-4, 100.0))
def test_nearest_level_is_the_nearest(sigma: float) -> None:
    table = legacy_ddpm_table()
    distances = np.abs(table.astype(np.float64) - sigma)
    assert sigma_to_timestep(sigma, table) == int(distances.argmin())


def test_of_two_levels_as_near_the_lower_is_taken() -> None:
    assert sigma_to_timestep(1.5, (1.0, 2.0)) == 0
    assert sigma_to_timestep(1.5000001, (1.0, 2.0)) == 1


def test_resolve_takes_the_table_of_the_denoiser() -> None:
    small = DenoiserConfig(num_idx=10, linear_start=1e-4, linear_end=2e-2)
    sigmas = resolve_sigmas(DiscretizationConfig(), 10, small)
    assert sigmas == (*(float(s) for s in legacy_ddpm_table(10, 1e-4, 2e-2)[::-1]), 0.0)
    with pytest.raises(ScheduleError, match="between 1 and 10, not 11"):
        resolve_sigmas(DiscretizationConfig(), 11, small)


def test_resolve_passes_edm_options_and_keeps_their_defaults() -> None:
    assert resolve_sigmas(DiscretizationConfig(name="edm"), 9, DenoiserConfig()) == edm(9)
    config = DiscretizationConfig(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert resolve_sigmas(config, 20, DenoiserConfig()) == edm(20, 0.002, 80.0, 7.0)


def test_resolve_refuses_edm_options_for_the_table() -> None:
    with pytest.raises(UsageError, match="schedule 'legacy_ddpm' has no option 'sigma_min'"):
        resolve_sigmas(DiscretizationConfig(sigma_min=0.1, rho=3.0), 9, DenoiserConfig())


@pytest.mark.parametrize("sigmas", [(), (1.0,), (1.0, 1.0), (1.0, 2.0), (1.0, -0.5), (math.nan, 0.0), (math.inf, 1.0)])
def test_levels_that_no_sampler_can_walk_are_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ScheduleError):
        check_sigmas(sigmas)


def test_neither_levels_nor_samplers_import_torch() -> None:
    code = "import sys, sdxl_core.diffusion.discretization, sdxl_core.diffusion.samplers; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_fractional_timesteps_are_those_of_diffusers() -> None:
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    table = legacy_ddpm_table()
    logs = np.log(table)
    for sigma in [*np.geomspace(0.03, 14.6, 40).tolist(), 0.001, 50.0]:
        theirs = float(scheduler._sigma_to_t(np.float64(sigma), logs))
        assert sigma_to_fractional_timestep(sigma, table) == pytest.approx(theirs, abs=1e-3)
    for index in (0, 1, 500, 998, 999):
        assert sigma_to_fractional_timestep(float(table[index]), table) == pytest.approx(index, abs=1e-9)


ZERO_TERMINAL = {
    999: 4518.76, 998: 2254.2, 990: 246.0, 950: 41.31, 899: 18.13, 799: 7.411, 699: 4.114, 599: 2.605, 499: 1.768,
    399: 1.241, 299: 0.8747, 199: 0.5948, 99: 0.3550, 0: 0.02917,
}  # fmt: skip


def test_a_zero_terminal_table_has_the_published_levels() -> None:
    table = trained_levels(DenoiserConfig(scaling="v", zero_terminal_snr="comfy"))
    assert {i: float(f"{table[i]:.4g}") for i in ZERO_TERMINAL} == pytest.approx(
        {i: float(f"{level:.4g}") for i, level in ZERO_TERMINAL.items()}
    )
    assert float(table[-1]) == pytest.approx(4518.76, abs=0.005)
    tail = trained_levels(DenoiserConfig(scaling="v", zero_terminal_snr="diffusers"))
    assert np.array_equal(tail[:-1], table[:-1])
    assert float(tail[-1]) == pytest.approx(4096, abs=1e-3)


def test_stretching_keeps_the_first_level_and_changes_nothing_else_but_by_one_line() -> None:
    kept = alpha_bars(linear_betas())
    stretched = zero_terminal_alpha_bars(kept, 0.0)
    assert stretched[0] == pytest.approx(kept[0], rel=1e-12)
    assert stretched[-1] == 0
    # The root of the new is a straight line over the root of the old.
    slopes = np.diff(np.sqrt(stretched)) / np.diff(np.sqrt(kept))
    assert np.ptp(slopes) < 1e-9


@pytest.mark.parametrize(
    "denoiser",
    [
        DenoiserConfig(),
        DenoiserConfig(scaling="v", zero_terminal_snr="comfy"),
        DenoiserConfig(scaling="edm"),
        DenoiserConfig(scaling="edm_v", sigma_min=0.01, sigma_max=100.0),
        DenoiserConfig(scaling="flow", shift=2.5),
    ],
    ids=lambda c: c.scaling,
)
def test_trained_levels_rise_between_the_ends_of_their_range(denoiser: DenoiserConfig) -> None:
    levels = trained_levels(denoiser)
    assert levels.shape == (denoiser.num_idx,)
    assert levels[0] > 0
    assert (np.diff(levels) > 0).all()
    assert (levels[0], levels[-1]) == pytest.approx(trained_range(denoiser), rel=1e-6)
    for discretization in (DiscretizationConfig(), DiscretizationConfig(name="edm")):
        sigmas = resolve_sigmas(discretization, 7, denoiser)
        check_sigmas(sigmas)
        assert len(sigmas) == 8
        assert sigmas[0] == pytest.approx(float(levels[-1]), rel=1e-4)


def test_a_range_is_evenly_spaced_in_the_logarithm_and_a_flow_in_its_share_of_noise() -> None:
    logs = np.log(trained_levels(DenoiserConfig(scaling="edm_v")).astype(np.float64))
    assert np.diff(logs) == pytest.approx(math.log(120 / 0.002) / 999, rel=1e-4)
    levels = trained_levels(DenoiserConfig(scaling="flow", shift=4.0)).astype(np.float64) / 4
    assert (levels / (1 + levels))[:-1] == pytest.approx(np.arange(1, 1000) / 1000, rel=1e-6)


def test_the_published_range_of_an_edm_model_gives_the_published_list() -> None:
    published = """80 57.586 40.786 28.375 19.353 12.910 8.4009 5.3152 3.2568 1.9233 1.0882 .5853 .2964 .1395 .0599
        .0229 .0075 .002"""
    levels = resolve_sigmas(DiscretizationConfig(name="edm", rho=7.0), 18, DenoiserConfig(scaling="edm"))
    assert levels == pytest.approx([*map(float, published.split()), 0.0], rel=1e-4, abs=5e-5)


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (DenoiserConfig(scaling="edm", sigma_min=80.0), "sigma_min 80 is not below sigma_max 80"),
        (DenoiserConfig(scaling="v", zero_terminal_snr="comfy", num_idx=1), "cannot be stretched"),
    ],
)
def test_levels_that_no_model_has(denoiser: DenoiserConfig, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        trained_levels(denoiser)
