"""Every sampler against diffusers: the same denoiser, start noise and levels, 20 steps, relative error 1e-5.

diffusers derives its levels from its own timesteps, so ours are put into the scheduler after `set_timesteps`; the
timesteps themselves then serve only to count. The model output it is given is eps = (x - denoised) / sigma.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
)
from support_closed_form import Gaussian, TwoPeaks, silence, steps

from sdxl_core.diffusion.discretization import edm, legacy_ddpm
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.types import Denoise

SHAPE = (4, 8, 6)
SEED = 17
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LISTS = [pytest.param(legacy_ddpm(20), id="legacy"), pytest.param(edm(20, 0.0292, 14.6146, 7.0), id="edm")]
LAWS = [Gaussian, TwoPeaks]


def start(sigmas: Sequence[float]) -> torch.Tensor:
    return PictureNoise([SEED], SHAPE).start(sigmas[0])


def put_levels(scheduler, sigmas: Sequence[float]) -> None:  # type: ignore[no-untyped-def]
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True  # it is about to be told eps itself, so there is no input to scale


def ve_run(  # type: ignore[no-untyped-def]
    scheduler, denoise: Denoise, sigmas: Sequence[float], levels: Sequence[float], **options
) -> torch.Tensor:
    """Drive a scheduler that keeps x = x0 + sigma eps; `levels` is where it asks for each model output."""
    x = start(sigmas)
    for t, sigma in zip(scheduler.timesteps, levels, strict=True):
        eps = (x - denoise(x, sigma).denoised) / sigma
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


def vp_run(scheduler, denoise: Denoise, sigmas: Sequence[float]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Drive a scheduler that keeps x / sqrt(1 + sigma^2)."""
    y = start(sigmas) / math.sqrt(1 + sigmas[0] ** 2)
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        x = y * math.sqrt(1 + sigma**2)
        y = scheduler.step((x - denoise(x, sigma).denoised) / sigma, t, y).prev_sample
    return y


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize(("name", "scheduler_of"), [("euler", EulerDiscreteScheduler), ("lms", LMSDiscreteScheduler)])
def test_one_call_methods(name: str, scheduler_of: type, sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    scheduler = scheduler_of(**BETAS)
    put_levels(scheduler, sigmas)
    theirs = ve_run(scheduler, law(), sigmas, sigmas[:-1])
    assert_near(steps(name, law(), start(sigmas), sigmas, silence)[-1].x, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_heun(sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    scheduler = HeunDiscreteScheduler(**BETAS)
    put_levels(scheduler, sigmas)
    # It walks a list in which every level but the first and the last stands twice.
    twice = [sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), 0.0]
    scheduler.sigmas = torch.tensor(twice)
    theirs = ve_run(scheduler, law(), sigmas, twice[:-1])
    assert_near(steps("heun", law(), start(sigmas), sigmas, silence)[-1].x, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_euler_ancestral(sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    scheduler = EulerAncestralDiscreteScheduler(**BETAS)
    put_levels(scheduler, sigmas)
    generator = torch.Generator().manual_seed(SEED)
    torch.randn(SHAPE, generator=generator)  # the start
    theirs = ve_run(scheduler, law(), sigmas, sigmas[:-1], generator=generator)
    noise = PictureNoise([SEED], SHAPE)
    x = noise.start(sigmas[0])
    assert_near(steps("euler_ancestral", law(), x, sigmas, noise)[-1].x, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_dpmpp_2m(sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    scheduler = DPMSolverMultistepScheduler(**BETAS, solver_order=2, final_sigmas_type="zero")
    put_levels(scheduler, sigmas)
    theirs = vp_run(scheduler, law(), sigmas)
    assert_near(steps("dpmpp_2m", law(), start(sigmas), sigmas, silence)[-1].x, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_dpmpp_2s_without_noise(sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    """diffusers has no ancestral form; its singlestep solver counts each half step as a step of its own."""
    halves = [sigmas[0]]
    for sigma, sigma_next in pairwise(sigmas[:-1]):
        halves += [math.sqrt(sigma * sigma_next), sigma_next]
    halves.append(0.0)
    scheduler = DPMSolverSinglestepScheduler(**BETAS, solver_order=2, final_sigmas_type="zero")
    put_levels(scheduler, halves)
    theirs = vp_run(scheduler, law(), halves)
    assert_near(steps("dpmpp_2s_ancestral", law(), start(sigmas), sigmas, silence, eta=0.0)[-1].x, theirs)
