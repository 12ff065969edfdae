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
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from support_closed_form import Gaussian, TwoPeaks, legacy_ddpm, silence, steps

from sdxl_core.diffusion.discretization import edm
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


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # theirs, of numpy
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_dpm_2(sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    scheduler = KDPM2DiscreteScheduler(**BETAS)
    put_levels(scheduler, sigmas)
    middles = [math.sqrt(a * b) for a, b in pairwise(sigmas[:-1])]
    scheduler.sigmas = torch.tensor([sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), 0.0])
    scheduler.sigmas_interpol = torch.tensor([sigmas[0], *(s for s in middles for _ in range(2)), 0.0])
    levels = [level for pair in zip(sigmas, middles, strict=False) for level in pair] + [sigmas[-2]]
    theirs = ve_run(scheduler, law(), sigmas, levels)
    assert_near(steps("dpm_2", law(), start(sigmas), sigmas, silence)[-1].x, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(eta: float, law: Callable[[], Denoise]) -> None:
    """It takes its levels from its table, so both walk the trailing timesteps, which are those of the legacy list."""
    sigmas = legacy_ddpm(20)
    scheduler = DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(SEED)
    torch.randn(SHAPE, generator=generator)  # the start
    denoise, y = law(), start(sigmas) / math.sqrt(1 + sigmas[0] ** 2)
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        x = y * math.sqrt(1 + sigma**2)
        y = scheduler.step((x - denoise(x, sigma).denoised) / sigma, t, y, eta=eta, generator=generator).prev_sample
    noise = PictureNoise([SEED], SHAPE)
    x = noise.start(sigmas[0])
    assert_near(steps("ddim", law(), x, sigmas, noise, eta=eta)[-1].x, y)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_uni_pc(order: int, sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    scheduler = UniPCMultistepScheduler(**BETAS, solver_order=order, solver_type="bh2", final_sigmas_type="zero")
    put_levels(scheduler, sigmas)
    theirs = vp_run(scheduler, law(), sigmas)
    ours = steps("uni_pc", law(), start(sigmas), sigmas, silence, order=order, solver_type="bh2")[-1].x
    assert_near(ours, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_uni_pc_above_zero(order: int, solver_type: str, sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    """Its bh1 ends in infinity times 0 at level 0; and the orders are lowered before that level alone."""
    sigmas = sigmas[:-1]
    scheduler = UniPCMultistepScheduler(**BETAS, solver_order=order, solver_type=solver_type, lower_order_final=False)
    put_levels(scheduler, sigmas)
    theirs = vp_run(scheduler, law(), sigmas) * math.sqrt(1 + sigmas[-1] ** 2)
    ours = steps("uni_pc", law(), start(sigmas), sigmas, silence, order=order, solver_type=solver_type)[-1].x
    assert_near(ours, theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int, sigmas: Sequence[float], law: Callable[[], Denoise]) -> None:
    """Up to the last level above 0: from there it takes the logarithm of 0, where ours returns the prediction."""
    sigmas = sigmas[:-1]
    scheduler = DEISMultistepScheduler(**BETAS, solver_order=order)
    put_levels(scheduler, sigmas)
    theirs = vp_run(scheduler, law(), sigmas) * math.sqrt(1 + sigmas[-1] ** 2)
    assert_near(steps("deis", law(), start(sigmas), sigmas, silence, order=order)[-1].x, theirs)


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
