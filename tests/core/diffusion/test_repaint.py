"""Keeping parts of pictures during a walk, on a denoiser whose answer is known."""

import math

import pytest
import torch
from support_closed_form import Counted, Gaussian, log_levels, steps
from support_networks import randn
from torch import Tensor

from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.discretization import last_levels
from sdxl_core.diffusion.guiders import Prompts
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.repaint import Kept, edit_denoise
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.types import Conditioning, Prediction

SHAPE = (1, 4, 6, 8)
LATENT, EPS = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
LEVELS = [*log_levels(9), 0.0]


def halves() -> Tensor:
    """Draw the right half, keep the left."""
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., 4:] = 1
    return mask


def noise() -> PictureNoise:
    return PictureNoise([3], SHAPE[1:])


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_leads_the_kept_part_back_to_the_picture(name: str) -> None:
    kept = Kept(LATENT, EPS, halves())
    x = kept.start(math.sqrt(1 + LEVELS[0] ** 2) * EPS, LEVELS[0])
    end = steps(name, kept.around(Gaussian(), LEVELS), x, LEVELS, noise())[-1].x
    torch.testing.assert_close(end[..., :4], LATENT[..., :4], rtol=0, atol=0.02)
    assert (end[..., 4:] - LATENT[..., 4:]).abs().max() > 0.5


@pytest.mark.parametrize("name", ["euler", "euler_ancestral"])
def test_the_drawn_part_is_what_it_is_without_a_mask_where_cells_do_not_see_each_other(name: str) -> None:
    kept, x = Kept(LATENT, EPS, halves()), LEVELS[0] * EPS
    masked = steps(name, kept.around(Gaussian(), LEVELS), kept.start(x, LEVELS[0]), LEVELS, noise())[-1].x
    whole = steps(name, Gaussian(), x, LEVELS, noise())[-1].x
    torch.testing.assert_close(masked[..., 4:], whole[..., 4:])


def test_the_network_sees_the_noised_picture_where_it_is_kept() -> None:
    seen = {}

    def watch(x: Tensor, sigma: float) -> Prediction:
        seen[sigma] = x
        return Prediction(torch.zeros_like(x), torch.ones_like(x))

    prediction = Kept(LATENT, EPS, halves()).around(watch, LEVELS)(torch.full(SHAPE, 9.0), 2.0)
    torch.testing.assert_close(seen[2.0][..., :4], (LATENT + 2.0 * EPS)[..., :4])
    assert (seen[2.0][..., 4:] == 9).all()
    assert prediction.uncond is not None
    for side, drawn in ((prediction.denoised, 0), (prediction.uncond, 1)):
        torch.testing.assert_close(side[..., :4], LATENT[..., :4])
        assert (side[..., 4:] == drawn).all()


@pytest.mark.parametrize("level", [0.1, 0.3, 0.55, 1.0])
def test_a_grey_mask_is_that_strength(level: float) -> None:
    grey = Kept(LATENT, EPS, torch.full((1, 1, *SHAPE[2:]), level))
    x = grey.start(math.sqrt(1 + LEVELS[0] ** 2) * EPS, LEVELS[0])
    end = steps("euler", grey.around(Gaussian(), LEVELS), x, LEVELS)[-1].x
    walked = last_levels(LEVELS, level)
    start = LATENT + walked[0] * EPS if level < 1 else x
    torch.testing.assert_close(end, steps("euler", Gaussian(), start, walked)[-1].x, rtol=1e-4, atol=1e-4)


def test_a_mask_of_ones_changes_nothing() -> None:
    kept, x = Kept(LATENT, EPS, torch.ones(1, 1, *SHAPE[2:])), LEVELS[0] * EPS
    assert torch.equal(kept.start(x, LEVELS[0]), x)
    masked = steps("heun", kept.around(Gaussian(), LEVELS), x, LEVELS)[-1].x
    assert torch.equal(masked, steps("heun", Gaussian(), x, LEVELS)[-1].x)


def test_no_noise_is_drawn_for_what_is_kept() -> None:
    counted, plain = Counted(noise()), Counted(noise())
    kept, x = Kept(LATENT, EPS, halves()), LEVELS[0] * EPS
    steps("euler_ancestral", kept.around(Gaussian(), LEVELS), x, LEVELS, counted)
    steps("euler_ancestral", Gaussian(), x, LEVELS, plain)
    assert counted.draws == plain.draws


def test_guidance_by_words_and_picture_is_linear_in_both() -> None:
    def network(x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        assert cond.concat is not None
        return x_in[:, :4] * 0 + cond.vector[:, :1, None, None] + cond.concat

    def side(value: float) -> Conditioning:
        return Conditioning(torch.zeros(1, 2, 3), torch.full((1, 5), value), torch.full(SHAPE, 10.0))

    denoiser = Denoiser(DenoiserConfig())
    x, sigma = randn(*SHAPE), float(denoiser.table[500])
    prompts = Prompts((side(3.0),), uncond=side(1.0))
    out = edit_denoise(denoiser, network, prompts, 7.0, 1.5)(x, sigma).denoised
    eps = 1.0 + 1.5 * 10.0 + 7.0 * (3.0 - 1.0)
    torch.testing.assert_close(out, x - sigma * eps, rtol=1e-4, atol=1e-3)
