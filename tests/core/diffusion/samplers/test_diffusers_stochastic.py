"""Every stochastic sampler that diffusers has against it: the same denoiser, start, levels and noise, 20 steps, 1e-5.

As in `test_diffusers.py` our levels are put into a scheduler after `set_timesteps`; what a scheduler draws itself it
draws from the picture's seed, and where it would grow a Brownian tree it is handed our path.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    SASolverScheduler,
    TCDScheduler,
)
from support_closed_form import Gaussian, TwoPeaks, legacy_ddpm, steps
from torch import Tensor

from sdxl_core.diffusion.discretization import edm, legacy_ddpm_timesteps
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.types import Denoise

SHAPE = (4, 8, 6)
SEED = 17
N = 20
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEGACY = pytest.param(legacy_ddpm(N), id="legacy")
LISTS = [LEGACY, pytest.param(edm(N, 0.0292, 14.6146, 7.0), id="edm")]
LAWS = [Gaussian, TwoPeaks]
Law = Callable[[], Denoise]


class Plain(PictureNoise):
    """Draws that do not know their levels, for a scheduler that draws so too."""

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        return self()


def ours(name: str, law: Law, sigmas: Sequence[float], **options: Any) -> Tensor:
    noise = PictureNoise([SEED], SHAPE)
    return steps(name, law(), noise.start(sigmas[0]), sigmas, noise, **options)[-1].x


def started(sigmas: Sequence[float]) -> tuple[Tensor, torch.Generator]:
    """The start of a run, and the generator that made it."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn((1, *SHAPE), generator=generator) * math.sqrt(1 + sigmas[0] ** 2), generator


def eps(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return (x - denoise(x, sigma).denoised) / sigma


def alpha(sigma: float) -> float:
    return 1 / math.sqrt(1 + sigma**2)


def put_levels(scheduler: Any, levels: Sequence[float]) -> None:
    scheduler.set_timesteps(N)
    scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)  # so that its coefficients are not rounded
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True


def vp_run(scheduler: Any, denoise: Denoise, sigmas: Sequence[float], timesteps: Sequence[int]) -> Tensor:
    """Drive a scheduler that keeps alpha x and finds its levels by timestep."""
    scheduler.set_timesteps(timesteps=list(timesteps))
    x, generator = started(sigmas)
    for t, (sigma, sigma_next) in zip(scheduler.timesteps, pairwise(sigmas), strict=True):
        y = scheduler.step(eps(denoise, x, sigma), t, alpha(sigma) * x, generator=generator).prev_sample
        x = y / alpha(sigma_next)
    return x


def assert_near(mine: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert float((mine - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.parametrize("law", LAWS)
def test_ddpm(law: Law) -> None:
    scheduler = DDPMScheduler(**BETAS, clip_sample=False)
    theirs = vp_run(scheduler, law(), legacy_ddpm(N), legacy_ddpm_timesteps(N))
    assert_near(ours("ddpm", law, legacy_ddpm(N)), theirs)


@pytest.mark.parametrize("law", LAWS)
def test_lcm(law: Law) -> None:
    # Its scaling at the boundary is not ours; at these timesteps it changes the prediction by less than 1e-5.
    scheduler = LCMScheduler(**BETAS, clip_sample=False, original_inference_steps=1000)
    theirs = vp_run(scheduler, law(), legacy_ddpm(N), legacy_ddpm_timesteps(N))
    assert_near(ours("lcm", law, legacy_ddpm(N)), theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(law: Law, eta: float) -> None:
    """All steps but the last, which ends at the lowest level of the table there, and at 0 here as every sampler's."""
    sigmas = legacy_ddpm(N)
    scheduler = TCDScheduler(**BETAS, clip_sample=False, original_inference_steps=1000)
    scheduler.set_timesteps(timesteps=list(legacy_ddpm_timesteps(N)))
    x, generator = started(sigmas)
    for t, (sigma, sigma_next) in zip(scheduler.timesteps[:-1], pairwise(sigmas[:-1]), strict=True):
        y = scheduler.step(eps(law(), x, sigma), t, alpha(sigma) * x, eta=eta, generator=generator).prev_sample
        x = y / alpha(sigma_next)
    assert_near(ours("tcd", law, sigmas[:-1], eta=eta), x)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # its own, on numpy 2
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_dpm_2_ancestral(sigmas: Sequence[float], law: Law) -> None:
    scheduler = KDPM2AncestralDiscreteScheduler(**BETAS)
    put_levels(scheduler, [sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), 0.0, 0.0])
    levels = torch.tensor(sigmas, dtype=torch.float64)
    up = levels[1:] * (1 - (levels[1:] / levels[:-1]) ** 2).sqrt()
    down = levels[1:] ** 2 / levels[:-1]
    middle = (levels[:-1] * down).sqrt()
    for name, values in (("sigmas_up", up), ("sigmas_down", down), ("sigmas_interpol", middle)):
        setattr(scheduler, name, values.repeat_interleave(2)[1:])  # the first once, like the levels
    theirs, generator = started(sigmas)
    denoise = law()
    for i, sigma in enumerate(sigmas[:-2]):
        for level in (sigma, float(middle[i])):
            t = scheduler.timesteps[2 * i + (level != sigma)]
            theirs = scheduler.step(eps(denoise, theirs, level), t, theirs, generator=generator).prev_sample
    assert_near(ours("dpm_2_ancestral", law, sigmas[:-1]), theirs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpmpp_2m_sde(sigmas: Sequence[float], law: Law, eta: float, solver_type: str) -> None:
    kind = "sde-dpmsolver++" if eta else "dpmsolver++"
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, solver_order=2, algorithm_type=kind, solver_type=solver_type, final_sigmas_type="zero"
    )
    assert_near(ours("dpmpp_2m_sde", law, sigmas, eta=eta, solver_type=solver_type), path_run(scheduler, law, sigmas))


def path_run(scheduler: DPMSolverMultistepScheduler, law: Law, sigmas: Sequence[float]) -> Tensor:
    put_levels(scheduler, sigmas)
    x, _ = started(sigmas)
    path, denoise = PictureNoise([SEED], SHAPE), law()
    for t, (sigma, sigma_next) in zip(scheduler.timesteps, pairwise(sigmas), strict=True):
        draw = path.between(sigma, sigma_next) if sigma_next > 0 else torch.zeros_like(x)
        y = scheduler.step(eps(denoise, x, sigma), t, alpha(sigma) * x, variance_noise=draw).prev_sample
        x = y / alpha(sigma_next)
    return x


class ThirdOrder(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers' solver, with the sign of one half put right.

    The weight of its second difference D2 in the stochastic third-order update is (1 - exp(-2h) - 2h) / (2h)^2 - 1/2;
    k-diffusion, where the method is from, and its own deterministic update (with h for 2h) have + 1/2.
    """

    def multistep_dpm_solver_third_order_update(self, outputs, *args, sample, noise=None, **rest):  # type: ignore[no-untyped-def]
        moved = super().multistep_dpm_solver_third_order_update(outputs, *args, sample=sample, noise=noise, **rest)
        if noise is None:
            return moved
        i = self.step_index
        logs = [-math.log(float(self.sigmas[j])) for j in (i + 1, i, i - 1, i - 2)]
        h, h_0, h_1 = (late - early for late, early in pairwise(logs))
        first, second = h / h_0 * (outputs[-1] - outputs[-2]), h / h_1 * (outputs[-2] - outputs[-3])
        return moved + alpha(float(self.sigmas[i + 1])) * h / (h_0 + h_1) * (first - second)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_3m_sde(sigmas: Sequence[float], law: Law, eta: float) -> None:
    kind = "sde-dpmsolver++" if eta else "dpmsolver++"
    scheduler = ThirdOrder(**BETAS, solver_order=3, algorithm_type=kind, solver_type="heun", final_sigmas_type="zero")
    assert_near(ours("dpmpp_3m_sde", law, sigmas, eta=eta), path_run(scheduler, law, sigmas))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
def test_dpmpp_sde(sigmas: Sequence[float], law: Law) -> None:
    pytest.importorskip("torchsde")  # the scheduler is not there without it
    scheduler = DPMSolverSDEScheduler(**BETAS)
    put_levels(scheduler, [sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), 0.0])
    path = PictureNoise([SEED], SHAPE)
    scheduler.noise_sampler = lambda sigma, sigma_next: path.between(float(sigma), float(sigma_next))
    x, _ = started(sigmas)
    denoise = law()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        for level in (sigma, math.sqrt(sigma * sigma_next)) if sigma_next > 0 else (sigma,):
            x = scheduler.step(eps(denoise, x, level), scheduler.timesteps[2 * i + (level != sigma)], x).prev_sample
    assert_near(ours("dpmpp_sde", law, sigmas), x)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigmas", LISTS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4)])
def test_sa_solver(sigmas: Sequence[float], law: Law, eta: float, orders: tuple[int, int]) -> None:
    """On levels above 0: its last step is another, as it ends at the lowest level of the table, and ours at 0.

    Its stochastic levels begin and end by the timestep that a step starts at, ours by the level it ends at, so noise is
    added everywhere or nowhere. It always takes the simple weights of two predictions, which beyond order 2 it meets
    while it gathers its history.
    """
    sigmas = sigmas[:-1]
    predictor, corrector = orders
    scheduler = SASolverScheduler(
        **BETAS,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: torch.tensor(eta),
        lower_order_final=False,
    )
    put_levels(scheduler, sigmas)
    x, generator = started(sigmas)
    denoise = law()
    for t, (sigma, sigma_next) in zip(scheduler.timesteps, pairwise(sigmas), strict=False):
        y = scheduler.step(eps(denoise, x, sigma), t, alpha(sigma) * x, generator=generator).prev_sample
        x = y / alpha(sigma_next)
    noise = Plain([SEED], SHAPE)
    options = {"predictor_order": predictor, "corrector_order": corrector, "simple_order_2": True}
    run = steps(
        "sa_solver", law(), noise.start(sigmas[0]), sigmas, noise, eta=eta, s_tmin=0.0, s_tmax=math.inf, **options
    )
    assert_near(run[-1].x, x)
