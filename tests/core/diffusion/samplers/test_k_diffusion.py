"""Samplers against k-diffusion, where it is installed with torchsde and torchdiffeq: same denoiser, levels and noise.

Only its file of samplers is loaded: the package itself asks for all that training needs.
"""

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from support_closed_form import Gaussian, TwoPeaks, legacy_ddpm, log_levels, silence, steps
from torch import Tensor

from sdxl_core.diffusion.discretization import edm
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.types import Denoise

SHAPE = (4, 8, 6)
SEED = 17
LISTS = [pytest.param(legacy_ddpm(20), id="legacy"), pytest.param(edm(20, 0.0292, 14.6146, 7.0), id="edm")]
NEEDS = ("k_diffusion", "torchsde", "torchdiffeq")


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["k_diffusion"] = package
    yield importlib.import_module("k_diffusion.sampling")
    for name in [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]:
        del sys.modules[name]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("law", [Gaussian, TwoPeaks])
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler_ancestral", {}),
        ("euler_ancestral", {"eta": 0.6, "s_noise": 1.003}),
        ("dpm_2_ancestral", {}),
        ("dpm_2_ancestral", {"eta": 0.6, "s_noise": 1.003}),
        ("dpmpp_2s_ancestral", {"eta": 0.6, "s_noise": 1.003}),
        ("dpmpp_sde", {}),
        ("dpmpp_sde", {"eta": 0.6, "s_noise": 1.003, "r": 0.3}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"eta": 0.6, "s_noise": 1.003}),
        ("dpmpp_2m_sde", {"eta": 1.3, "solver_type": "heun"}),
        ("dpmpp_3m_sde", {}),
        ("dpmpp_3m_sde", {"eta": 0.6, "s_noise": 1.003}),
        ("dpmpp_3m_sde", {"eta": 0.0}),
    ],
)
def test_sampler(
    theirs: Any, name: str, options: dict[str, Any], sigmas: Sequence[float], law: Callable[[], Denoise]
) -> None:
    noise = PictureNoise([SEED], SHAPE)
    x = noise.start(sigmas[0]).double()
    ours = steps(name, law(), x, sigmas, noise, **options)[-1].x

    noise, denoise = PictureNoise([SEED], SHAPE), law()
    x = noise.start(sigmas[0]).double()
    solves_an_sde = name.startswith("dpmpp_") and name.endswith("sde")

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, float(sigma[0])).denoised

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return noise.between(float(sigma), float(sigma_next)) if solves_an_sde else noise()

    levels = torch.tensor(sigmas, dtype=torch.float64)
    sample = getattr(theirs, f"sample_{name}")
    expected = sample(model, x, levels, noise_sampler=draw, disable=True, **options)
    assert_near(ours, expected)


def start(sigma: float) -> Tensor:
    return PictureNoise([SEED], SHAPE).start(sigma).double()


def model_of(law: Callable[[], Denoise]) -> Callable[..., Tensor]:
    denoise = law()
    return lambda x, sigma: denoise(x, float(sigma[0])).denoised


@pytest.mark.parametrize("law", [Gaussian, TwoPeaks])
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m", "lms"])
def test_deterministic(theirs: Any, name: str, sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    x = start(sigmas[0])
    expected = getattr(theirs, f"sample_{name}")(model_of(law), x, torch.tensor(sigmas).double(), disable=True)
    assert_near(steps(name, law(), x, sigmas, silence)[-1].x, expected)


@pytest.mark.parametrize("law", [Gaussian, TwoPeaks])
@pytest.mark.parametrize("n", [18, 19, 20])
def test_dpm_fast(theirs: Any, n: int, law: Callable[[], Denoise]) -> None:
    """It spends n calls on n // 3 + 1 steps of one length, whatever their order, and stops above 0."""
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    ends = log_levels(len(orders))
    sigmas = [ends[0]]
    for order, (high, low) in zip(orders, pairwise(ends), strict=True):
        sigmas += [high * (low / high) ** (j / order) for j in range(1, order)] + [low]
    x = start(ends[0])
    expected = theirs.sample_dpm_fast(model_of(law), x, ends[-1], ends[0], n, disable=True)
    taken = steps("dpm_fast", law(), x, sigmas, silence)
    assert [step.calls for step in taken] == [1] * n
    assert_near(taken[-1].x, expected)


@pytest.mark.parametrize("law", [Gaussian, TwoPeaks])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive(theirs: Any, order: int, law: Callable[[], Denoise]) -> None:
    """It stops above 0, and calls again at the beginning of a step that it makes again; ours remembers that one."""
    x, high, low = start(14.6), 14.6, 0.03
    torch.set_default_dtype(torch.float64)  # its own levels are float32 otherwise, and small differences steer it
    try:
        expected, info = theirs.sample_dpm_adaptive(
            model_of(law), x, low, high, order=order, disable=True, return_info=True
        )
    finally:
        torch.set_default_dtype(torch.float32)
    taken = steps("dpm_adaptive", law(), x, [high, low], silence, order=order)
    assert len(taken) == info["n_accept"]
    assert sum(step.calls for step in taken) == info["nfe"] - info["n_reject"]
    assert_near(taken[-1].x, expected)
    assert math.isclose(taken[-1].sigma, low)
