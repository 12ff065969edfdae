"""Every schedule against another program's code, or its definition written in numpy and scipy, at several lengths."""

from collections.abc import Callable

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler, LCMScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules
from numpy.typing import NDArray
from scipy import stats

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import sigma_to_timestep, trained_levels
from sdxl_core.diffusion.schedules import resolve_sigmas

Array = NDArray[np.float64]

TABLE = trained_levels(DenoiserConfig()).astype(np.float64)
LOW, HIGH = TABLE[0], TABLE[-1]
LENGTHS = (2, 4, 10, 20, 30)


def levels(name: str, n: int, **options: object) -> Array:
    return np.array(resolve_sigmas(DiscretizationConfig(name=name, **options), n, DenoiserConfig()))


def at(t: Array) -> Array:
    """Levels at fractional timesteps, linear in their logarithm."""
    return np.exp(np.interp(t, np.arange(1000), np.log(TABLE)))


def quantiles(shares: Array) -> Array:
    return np.asarray(stats.beta.ppf(shares, 0.6, 0.6))


def stretched(numbers: str, count: int) -> Array:
    known = np.log(np.array(numbers.split(), dtype=float))
    return np.exp(np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(known)), known))


def laplace(n: int) -> Array:
    x = np.linspace(0, 1, n)
    return np.clip(np.exp(-0.5 * np.sign(0.5 - x) * np.log(1 - 2 * abs(0.5 - x) + 1e-5)), LOW, HIGH)


def linear_quadratic(n: int) -> Array:
    """The straight line, then the parabola that goes on with its slope and ends at 1, by its three conditions."""
    m, slope = n // 2, 0.025 / (n // 2)
    parabola = np.linalg.solve([[m * m, m, 1], [2 * m, 1, 0], [n * n, n, 1]], [0.025, slope, 1])
    i = np.arange(n)
    return HIGH * (1 - np.where(i < m, slope * i, np.polyval(parabola, i)))


def bong_tangent(n: int) -> Array:
    def curve(count: int, pivot: int, start: float, end: float) -> Array:
        heights = (2 / np.pi * np.arctan(-0.2 / ((n + 2) / 40) * (np.arange(count) - pivot)) + 1) / 2
        return (heights - heights[-1]) / (heights[0] - heights[-1]) * (start - end) + end

    turn, middle = int((n + 2) * 0.6), (LOW + HIGH) / 2
    return np.concatenate([curve(turn, turn, HIGH, middle)[:-1], curve(n + 2 - turn, 0, middle, LOW)])[:n]


AYS = "14.6146412293 6.3184485287 3.7681790315 2.1811480769 1.3405244945 0.8620721141 0.5550693289 0.3798540708 \
0.2332364134 0.1114188177 0.0291671582"
AYS_ROUNDED = "14.615 6.315 3.771 2.181 1.342 0.862 0.555 0.380 0.234 0.113 0.029"

DEFINITIONS: dict[str, Callable[[int], Array]] = {
    "legacy_ddpm": lambda n: TABLE[np.linspace(999, 0, n, endpoint=False).astype(int)],
    "normal": lambda n: at(np.linspace(999, 0, n)),
    "simple": lambda n: TABLE[[-(1 + int(i * 1000 / n)) for i in range(n)]],
    "sgm_uniform": lambda n: at(np.linspace(999, 0, n + 1)[:-1]),
    "karras": lambda n: np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), n) ** 7,
    "edm": lambda n: np.linspace(14.6146 ** (1 / 3), 0.0292 ** (1 / 3), n) ** 3,
    "exponential": lambda n: np.geomspace(HIGH, LOW, n),
    "kl_optimal": lambda n: np.tan(np.linspace(np.arctan(HIGH), np.arctan(LOW), n)),
    "beta": lambda n: TABLE[np.rint(quantiles(1 - np.linspace(0, 1, n, endpoint=False)) * 999).astype(int)],
    "beta_a1111": lambda n: LOW + quantiles(np.linspace(1, 0, n)) * (HIGH - LOW),
    "beta_continuous": lambda n: at(quantiles(1 - np.linspace(0, 1, n, endpoint=False)) * 999),
    "align_your_steps": lambda n: stretched(AYS, n + 1)[:-1],
    "align_your_steps_a1111": lambda n: stretched(AYS_ROUNDED, n),
    "laplace": laplace,
    "vp": lambda n: np.sqrt(np.expm1(19.9 * np.linspace(1, 1e-3, n) ** 2 / 2 + 0.1 * np.linspace(1, 1e-3, n))),
    "turbo_forge": lambda n: TABLE[np.rint(np.arange(n, 0, -1) * (1000 / n) - 1).astype(int)],
    "linear_quadratic": linear_quadratic,
    "bong_tangent": bong_tangent,
    "smoothstep": lambda n: TABLE[
        [int(np.floor(999 * (3 * u**2 - 2 * u**3) + 0.5)) for u in 1 - np.arange(n, dtype=float) / n]
    ],
}


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_schedule_is_its_definition(name: str, n: int) -> None:
    # The power of edm and karras is taken of float32 numbers, as the original does.
    np.testing.assert_allclose(
        levels(name, n), [*DEFINITIONS[name](n), 0], rtol=1e-5 if name in ("edm", "karras") else 2e-7
    )


@pytest.mark.parametrize("n", LENGTHS)
def test_a_polyexponential_bends_the_logarithm(n: int) -> None:
    ramp = np.linspace(1, 0, n) ** 2.5
    expected = np.exp(ramp * (np.log(HIGH) - np.log(LOW)) + np.log(LOW))
    np.testing.assert_allclose(levels("polyexponential", n, rho=2.5)[:-1], expected, rtol=2e-7)


@pytest.mark.parametrize("n", LENGTHS)
def test_kl_optimal_of_a1111_ends_at_the_lowest_level(n: int) -> None:
    expected = np.tan(np.linspace(np.arctan(HIGH), np.arctan(LOW), n + 1))
    np.testing.assert_allclose(levels("kl_optimal_a1111", n), expected, rtol=2e-7)


EULER = {
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta_a1111": {"use_beta_sigmas": True},
}


@pytest.mark.parametrize("n", [*LENGTHS, 7, 50])
@pytest.mark.parametrize("name", EULER)
def test_a_schedule_of_diffusers_is_ours(name: str, n: int) -> None:
    theirs = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **EULER[name])
    theirs.set_timesteps(n)
    # diffusers multiplies a thousand betas in float32, which moves its table by up to 1.3e-5.
    np.testing.assert_allclose(levels(name, n), theirs.sigmas.numpy(), rtol=2e-5)
    if name in ("trailing", "leading"):
        ours = [sigma_to_timestep(sigma, trained_levels(DenoiserConfig())) for sigma in levels(name, n)[:-1]]
        assert ours == theirs.timesteps.tolist()


@pytest.mark.parametrize("n", range(1, 1001, 37))
def test_trailing_rounds_as_numpy_does(n: int) -> None:
    expected = TABLE[np.round(np.arange(1000, 0, -1000 / n)).astype(int)[:n] - 1]
    np.testing.assert_array_equal(levels("trailing", n)[:-1], expected)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 13, 50])
def test_lcm_timesteps_are_those_of_diffusers(n: int) -> None:
    theirs = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs.set_timesteps(n)
    np.testing.assert_array_equal(levels("lcm", n)[:-1], TABLE[theirs.timesteps.numpy()])


def test_align_your_steps_is_the_list_that_diffusers_has() -> None:
    np.testing.assert_allclose(levels("align_your_steps", 10), AysSchedules["StableDiffusionXLSigmas"], rtol=0.015)
    ours = [sigma_to_timestep(sigma, trained_levels(DenoiserConfig())) for sigma in levels("align_your_steps", 10)[:-1]]
    assert ours == AysSchedules["StableDiffusionXLTimesteps"]
