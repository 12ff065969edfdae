"""Samplers against k-diffusion, where it is installed with torchsde and torchdiffeq: same denoiser, levels and noise.

Only its file of samplers is loaded: the package itself asks for all that training needs.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from support_closed_form import Gaussian, TwoPeaks, steps
from torch import Tensor

from sdxl_core.diffusion.discretization import edm, legacy_ddpm
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
