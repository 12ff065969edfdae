"""What every sampler of the table must do, whatever its formula."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support_closed_form import (
    Counted,
    Gaussian,
    TwoPeaks,
    deterministic,
    karras_levels,
    legacy_ddpm,
    log_levels,
    silence,
    solved,
    steps,
)

from sdxl_core.diffusion.discretization import edm
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.options import Between
from sdxl_core.diffusion.samplers import SAMPLERS, check_options, model_calls
from sdxl_core.errors import ScheduleError

SHAPE = (4, 6, 5)
NAMES = list(SAMPLERS)
SOLVE_THE_EQUATION = [name for name in NAMES if deterministic(name) or not SAMPLERS[name].stochastic]
FIXED = [name for name in NAMES if SAMPLERS[name].calls is not None]
"""Those that take as many steps as the list has."""
LAWS = {"gaussian": Gaussian(), "two peaks": TwoPeaks()}
HIGH, LOW = 1000.0, 0.15
"""From so high, what a multistep method lacks in its first steps dies out."""
STEPS = (254, 512)  # dpm_fast ends with a step of second order where two are left over by threes, else of first


def start(seeds: list[int], sigma: float) -> tuple[torch.Tensor, PictureNoise]:
    noise = PictureNoise(seeds, SHAPE)
    return noise.start(sigma), noise


@pytest.fixture(scope="module")
def walks() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Where a few pictures of each law start, and where the exact solution takes them."""
    x = torch.tensor([-1.3, -0.4, 0.2, 0.9], dtype=torch.float64) * HIGH
    return {name: (x, solved(law, x, HIGH, LOW)) for name, law in LAWS.items()}


@pytest.mark.parametrize("levels", [karras_levels, log_levels])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", [name for name in SOLVE_THE_EQUATION if name in FIXED])
def test_error_falls_with_the_declared_order(walks, name: str, law: str, levels) -> None:  # type: ignore[no-untyped-def]
    x, exact = walks[law]
    errors = []
    for n in STEPS:
        last = steps(name, LAWS[law], x, levels(n, HIGH, LOW), **deterministic(name))[-1].x
        errors.append(float((last - exact).norm() / exact.norm()))
    measured = math.log(errors[0] / errors[1]) / math.log(STEPS[1] / STEPS[0])
    if (name, law, levels) == ("deis", "gaussian", log_levels):
        # Levels even in ln(sigma) and the Gaussian's slope are symmetric about its std: the chief errors cancel.
        assert errors[1] < 1e-7
    else:
        assert measured == pytest.approx(SAMPLERS[name].order, abs=0.12), errors


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("law", LAWS)
def test_the_error_of_adaptive_steps_stays_near_what_is_allowed(walks, law: str, order: int) -> None:  # type: ignore[no-untyped-def]
    x, exact = walks[law]
    counts = []
    for allowed in (1e-4, 1e-5):
        options = {"order": order, "rtol": allowed, "atol": allowed / 6}
        taken = steps("dpm_adaptive", LAWS[law], x, [HIGH, 1.0, LOW], silence, **options)
        assert float((taken[-1].x - exact).norm() / exact.norm()) < 10 * allowed
        counts.append(len(taken))
    assert counts[1] / counts[0] == pytest.approx(10 ** (1 / order), rel=0.25)


@pytest.mark.parametrize("name", SOLVE_THE_EQUATION)
def test_a_run_ends_near_the_exact_solution(name: str) -> None:
    gaussian = Gaussian(mean=0.4)
    sigmas = edm(200)
    x, _ = start([0], sigmas[0])
    last = steps(name, gaussian, x.double(), sigmas, **deterministic(name))[-1]
    expected = gaussian.solution(x.double(), sigmas[0], 0.0)
    error = (last.x - expected).norm() / expected.norm()
    # The step from sigma_min 0.0292 to 0 alone may err by sigma_min^2 / (2 std^2) = 9e-4.
    allowed = 2e-2 if SAMPLERS[name].order == 1 else 1e-3
    assert error < (allowed if name in FIXED else SAMPLERS[name].options["rtol"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_steps_are_counted_named_and_finite(name: str, n: int) -> None:
    sigmas = legacy_ddpm(n)
    x, noise = start([0], sigmas[0])
    gaussian = Gaussian()
    taken = steps(name, gaussian, x, sigmas, noise)
    assert [s.index for s in taken] == list(range(len(taken)))
    assert_walked(name, [s.sigma for s in taken], sigmas)
    assert all(s.x.shape == x.shape and s.x.dtype == torch.float32 and s.x.isfinite().all() for s in taken)
    assert sum(s.calls for s in taken) == gaussian.calls
    assert model_calls(name, sigmas) in (gaussian.calls, None)
    assert (model_calls(name, sigmas) is None) == (name not in FIXED)


def assert_walked(name: str, walked: list[float], sigmas: Sequence[float]) -> None:
    """The levels that steps ended on: those of the list, but for samplers that choose some by themselves."""
    assert walked[-1] == sigmas[-1]
    if name == "dpm_fast":
        assert len(walked) == len(sigmas) - 1
    elif name in FIXED:
        assert walked == list(sigmas[1:])
    assert all(before > after for before, after in pairwise([sigmas[0], *walked]))


@pytest.mark.parametrize("name", NAMES)
def test_a_list_that_ends_above_zero_is_walked_to_its_end(name: str) -> None:
    sigmas = legacy_ddpm(20)[:8]
    x, noise = start([0], sigmas[0])
    gaussian = Gaussian()
    taken = steps(name, gaussian, x, sigmas, noise)
    assert sigmas[-1] > 0
    assert_walked(name, [s.sigma for s in taken], sigmas)
    assert sum(s.calls for s in taken) == gaussian.calls
    assert model_calls(name, sigmas) in (gaussian.calls, None)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lms"])
@pytest.mark.parametrize("n", [1, 2, 10])
def test_the_step_to_level_zero_returns_the_prediction(name: str, n: int) -> None:
    sigmas = edm(n)
    x, noise = start([0], sigmas[0])
    last = steps(name, TwoPeaks(), x, sigmas, noise)[-1]
    assert torch.equal(last.x, last.denoised)


@pytest.mark.parametrize("name", NAMES)
def test_input_and_earlier_steps_are_left_alone(name: str) -> None:
    sigmas = legacy_ddpm(6)
    x, noise = start([0], sigmas[0])
    before = x.clone()
    taken, copies = [], []
    for step in SAMPLERS[name].fn(TwoPeaks(), x, sigmas, noise=noise):
        taken.append(step)
        copies.append((step.x.clone(), step.denoised.clone()))
    assert torch.equal(x, before)
    for step, (latent, denoised) in zip(taken, copies, strict=True):
        assert torch.equal(step.x, latent)
        assert torch.equal(step.denoised, denoised)


@pytest.mark.parametrize("name", FIXED)
def test_a_batch_of_two_is_two_single_pictures(name: str) -> None:
    sigmas = legacy_ddpm(12)
    x, noise = start([5, 6], sigmas[0])
    together = steps(name, TwoPeaks(), x, sigmas, noise)[-1].x
    for row, seed in enumerate((5, 6)):
        x, noise = start([seed], sigmas[0])
        assert torch.equal(steps(name, TwoPeaks(), x, sigmas, noise)[-1].x, together[row : row + 1])


@pytest.mark.parametrize("name", FIXED)  # adaptive steps follow from differences that are mostly rounding at first
def test_float32_follows_float64(name: str) -> None:
    sigmas = legacy_ddpm(30)
    x, noise = start([3], sigmas[0])
    single = steps(name, TwoPeaks(), x, sigmas, noise)[-1].x
    x, noise = start([3], sigmas[0])
    double = steps(name, TwoPeaks(), x.double(), sigmas, noise)[-1].x
    assert double.dtype == torch.float64
    assert (single - double).norm() / double.norm() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_drawn_where_the_table_says_and_nowhere_without_eta(name: str) -> None:
    sigmas = legacy_ddpm(10)
    x, noise = start([0], sigmas[0])
    counted = Counted(noise)
    steps(name, Gaussian(), x, sigmas, counted)
    assert (counted.draws > 0) == SAMPLERS[name].stochastic
    if name in SOLVE_THE_EQUATION:
        steps(name, Gaussian(), x, sigmas, silence, **deterministic(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 2.0, 0.0), (1.0, 1.0, 0.0), (math.nan, 0.0)])
def test_a_bad_list_is_refused_before_the_first_call(name: str, sigmas: tuple[float, ...]) -> None:
    gaussian = Gaussian()
    with pytest.raises(ScheduleError):
        steps(name, gaussian, 1.0, sigmas)
    assert gaussian.calls == 0


@given(
    name=st.sampled_from(FIXED),
    levels=st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8, unique=True),
    ends_at_zero=st.booleans(),
    eta=st.floats(0.0, 3.0),
)
def test_predicted_calls_are_the_calls_made(name: str, levels: list[float], ends_at_zero: bool, eta: float) -> None:
    sigmas = sorted(levels, reverse=True) + ([0.0] if ends_at_zero else [])
    options = {"eta": eta} if "eta" in SAMPLERS[name].options else {}
    assume(not options or eta in SAMPLERS[name].allowed.get("eta", Between(0.0, 3.0)))
    check_options(name, options)
    gaussian = Gaussian()
    taken = steps(name, gaussian, 1.0, sigmas, Counted(), **options)
    assert sum(s.calls for s in taken) == gaussian.calls == model_calls(name, sigmas, options)
    assert_walked(name, [s.sigma for s in taken], sigmas)
