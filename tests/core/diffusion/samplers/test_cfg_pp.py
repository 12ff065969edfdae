"""CFG++ forms beside their formulas and beside the methods that they are forms of."""

import math
from itertools import pairwise

import pytest
from support_closed_form import Gaussian, TwoPeaks, legacy_ddpm, silence, steps
from torch import Tensor

from sdxl_core.diffusion.discretization import edm
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.types import Prediction

SHAPE = (4, 6, 5)
FORMS = [name for name, row in SAMPLERS.items() if row.uncond]
LISTS = [pytest.param(legacy_ddpm(20), id="legacy"), pytest.param(edm(20, 0.0292, 14.6146, 7.0), id="edm")]


def guided(x: Tensor, sigma: float) -> Prediction:
    """Guidance of scale 0.8 between two laws."""
    uncond, cond = TwoPeaks()(x, sigma).denoised, Gaussian(mean=0.6)(x, sigma).denoised
    return Prediction(uncond + 0.8 * (cond - uncond), uncond)


def parts(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    prediction = guided(x, sigma)
    assert prediction.uncond is not None
    return prediction.denoised, prediction.uncond


def same(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm() / b.norm()) < 1e-5


def test_the_forms_are_those_whose_name_says_so() -> None:
    assert [name for name in SAMPLERS if name.endswith("_cfg_pp")] == FORMS
    assert len(FORMS) == 6


@pytest.mark.parametrize("name", FORMS)
def test_without_guidance_it_is_the_plain_method(name: str) -> None:
    sigmas, ends = legacy_ddpm(15), []
    for which in (name, name.removesuffix("_cfg_pp")):
        noise = PictureNoise([5], SHAPE)
        ends.append(steps(which, TwoPeaks(), noise.start(sigmas[0]), sigmas, noise)[-1].x)
    assert same(*ends)


@pytest.mark.parametrize("name", FORMS)
def test_guidance_changes_the_picture_and_the_last_step_returns_the_guided_prediction(name: str) -> None:
    sigmas, noise, again = edm(10), PictureNoise([5], SHAPE), PictureNoise([5], SHAPE)
    last = steps(name, guided, noise.start(sigmas[0]), sigmas, noise)[-1]
    plain = steps(name.removesuffix("_cfg_pp"), guided, again.start(sigmas[0]), sigmas, again)[-1]
    assert same(last.x, last.denoised)
    assert not same(last.x, plain.x)


@pytest.mark.parametrize("sigmas", LISTS)
def test_euler_is_the_papers_algorithm(sigmas: tuple[float, ...]) -> None:
    """In the paper's variables: sqrt(alpha_bar) of the guided prediction, sqrt(1 - alpha_bar) of the free noise."""
    x = PictureNoise([1], SHAPE).start(sigmas[0]).double()
    y = x / math.sqrt(1 + sigmas[0] ** 2)
    for sigma, sigma_next in pairwise(sigmas):
        alpha_bar, alpha_bar_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        denoised, uncond = parts(y / math.sqrt(alpha_bar), sigma)
        eps = (y - math.sqrt(alpha_bar) * uncond) / math.sqrt(1 - alpha_bar)
        y = math.sqrt(alpha_bar_next) * denoised + math.sqrt(1 - alpha_bar_next) * eps
    assert same(steps("euler_cfg_pp", guided, x, sigmas, silence)[-1].x, y)


@pytest.mark.parametrize("sigmas", LISTS)
def test_2m_extrapolates_from_the_unconditional_prediction_before(sigmas: tuple[float, ...]) -> None:
    start = x = PictureNoise([1], SHAPE).start(sigmas[0]).double()
    times = [-math.log(sigma) for sigma in sigmas[:-1]]
    known: list[Tensor] = []
    for i, h in enumerate(b - a for a, b in pairwise(times)):
        denoised, uncond = parts(x, sigmas[i])
        x = denoised + math.exp(-h) * (x - uncond)
        if i > 0:
            r = (times[i] - times[i - 1]) / h
            x = x + (1 - math.exp(-h)) / (2 * r) * (denoised - known[-1])
        known.append(uncond)
    assert same(steps("dpmpp_2m_cfg_pp", guided, start, sigmas, silence)[-2].x, x)


@pytest.mark.parametrize("sigmas", LISTS)
def test_res_multistep_moves_on_the_unconditional_line(sigmas: tuple[float, ...]) -> None:
    start = x = PictureNoise([1], SHAPE).start(sigmas[0]).double()
    times = [-math.log(sigma) for sigma in sigmas[:-1]]
    known: list[Tensor] = []
    for i, h in enumerate(b - a for a, b in pairwise(times)):
        denoised, uncond = parts(x, sigmas[i])
        phi_1 = (1 - math.exp(-h)) / h
        phi_2 = (1 - phi_1) / h
        if i == 0:
            x = denoised + math.exp(-h) * (x - uncond)
        else:
            b_2 = -phi_2 * h / (times[i] - times[i - 1])
            x = math.exp(-h) * (x + denoised - uncond) + h * ((phi_1 - b_2) * uncond + b_2 * known[-1])
        known.append(uncond)
    assert same(steps("res_multistep_cfg_pp", guided, start, sigmas, silence)[-2].x, x)
