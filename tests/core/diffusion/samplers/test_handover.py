"""Cutting a walk in two, as a second model does: what samplers keep and what they begin anew."""

from collections.abc import Sequence

import pytest
import torch
from support_closed_form import TwoPeaks
from torch import Tensor

from sdxl_core.diffusion.discretization import edm
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.samplers import SAMPLERS, looks_back

SHAPE = (4, 3, 5)
SIGMAS = edm(8)


def walked(name: str, noise: PictureNoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    *_, last = SAMPLERS[name].fn(TwoPeaks(), x, sigmas, noise=noise)
    return last.x


def cut_walk(name: str, cut: int) -> Tensor:
    noise = PictureNoise([3], SHAPE)
    half = walked(name, noise, noise.start(SIGMAS[0]), SIGMAS[: cut + 1])
    return walked(name, noise, half, SIGMAS[cut:])


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.calls is not None])
def test_a_cut_walk_is_the_whole_one_bit_for_bit_unless_the_sampler_looks_back(name: str) -> None:
    noise = PictureNoise([3], SHAPE)
    whole = walked(name, noise, noise.start(SIGMAS[0]), SIGMAS)
    assert all(torch.equal(cut_walk(name, cut), whole) for cut in range(1, 8)) is not looks_back(name)


def test_one_step_samplers_do_not_look_back_and_multistep_ones_do() -> None:
    assert not any(looks_back(name) for name in ("euler", "heun", "euler_ancestral", "dpmpp_2s_ancestral"))
    assert looks_back("dpmpp_2m")
    assert looks_back("lms")
    assert not looks_back("lms", ("order", 1))
