"""The formulas of guidance against their closed forms, and against diffusers' guiders on the same predictions.

diffusers' guiders work on what they are handed; where a formula depends on that, they are handed what the paper takes.
"""

import numpy as np
import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.guider_utils import rescale_noise_cfg
from scipy import ndimage
from support_networks import randn, relative_error
from torch import Tensor

from sdxl_core.diffusion.blur import low_frequencies
from sdxl_core.diffusion.guidance import (
    ProjectedUpdate,
    by_frequency,
    fitted,
    rescaled,
    tangential,
    thresholded,
    without_shared,
)
from sdxl_core.guider_config import ApgConfig, DynamicThresholdingConfig, RescaleConfig

SIGMA, SCALE = 3.0, 7.5
SHAPE = (2, 4, 6, 10)
COND, UNCOND, NEGATIVE = (randn(*SHAPE, seed=seed) for seed in range(3))
X = COND + SIGMA * randn(*SHAPE, seed=3)
TOLERANCE = 1e-5


def eps(prediction: Tensor) -> Tensor:
    return (X - prediction) / SIGMA


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2, 3))


def length(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


# --- perp-neg -------------------------------------------------------------------------------------------------------


def test_perp_neg_takes_away_what_is_perpendicular_to_the_prompt() -> None:
    moved = COND - without_shared(COND, UNCOND, NEGATIVE, 1.5)
    toward, away = COND - UNCOND, NEGATIVE - UNCOND
    assert dot(moved, toward).abs().max() < 1e-3
    rest = away - moved / 1.5  # what was left out is along the prompt
    cosine = dot(rest, toward).abs() / (length(rest) * length(toward))
    assert (cosine - 1).abs().max() < 1e-5


def test_perp_neg_of_the_prompt_itself_or_of_nothing_changes_nothing() -> None:
    torch.testing.assert_close(without_shared(COND, UNCOND, COND, 1.0), COND, rtol=0, atol=1e-5)
    assert torch.equal(without_shared(COND, UNCOND, UNCOND, 1.0), COND)
    assert without_shared(COND, COND, NEGATIVE, 1.0).isfinite().all()


# --- TCFG and CFG-Zero* ---------------------------------------------------------------------------------------------


def test_tangential_damping_is_diffusers() -> None:
    theirs = TangentialClassifierFreeGuidance(guidance_scale=SCALE).forward(eps(COND), eps(UNCOND)).pred
    uncond = tangential(X, COND, UNCOND)
    assert relative_error(eps(uncond + SCALE * (COND - uncond)), theirs) < TOLERANCE


def test_tangential_damping_keeps_scores_that_are_parallel() -> None:
    parallel = X - 0.6 * (X - COND)
    torch.testing.assert_close(tangential(X, COND, parallel), parallel, rtol=0, atol=1e-5)


def test_zero_star_is_diffusers() -> None:
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=SCALE, zero_init_steps=0)
    guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(0))
    uncond = fitted(X, COND, UNCOND)
    assert (
        relative_error(eps(uncond + SCALE * (COND - uncond)), guider.forward(eps(COND), eps(UNCOND)).pred) < TOLERANCE
    )


def test_zero_star_leaves_an_update_that_is_perpendicular_to_uncond() -> None:
    uncond = fitted(X, COND, UNCOND)
    assert dot(COND - uncond, X - UNCOND).abs().max() < 2e-3  # of sums near 1000
    assert torch.equal(fitted(X, COND, X), X)


# --- APG ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, -0.5])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 4.0, 1e3])
def test_projected_guidance_is_diffusers_on_clean_latents(momentum: float, eta: float, threshold: float) -> None:
    """The paper's cond + (scale - 1) update: what diffusers calls the original formulation, whose scale is one less."""
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=SCALE - 1,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        use_original_formulation=True,
    )
    update = ProjectedUpdate(ApgConfig(eta=eta, threshold=threshold, momentum=momentum))
    for step in range(3):
        theirs.set_state(step=step, num_inference_steps=3, timestep=torch.tensor(0))
        theirs.prepare_inputs({"x": (COND, UNCOND)})
        c, u = COND * (1 + step), UNCOND * (1 - step)
        assert relative_error(c + (SCALE - 1) * update(c, u), theirs.forward(c, u).pred) < TOLERANCE


def test_an_update_has_no_part_along_cond_and_a_limited_length() -> None:
    update = ProjectedUpdate(ApgConfig(eta=0.0, threshold=2.0, momentum=0.0))(COND, UNCOND)
    assert dot(update, COND).abs().max() < 1e-4
    assert length(update).max() <= 2.0001
    plain = ProjectedUpdate(ApgConfig(eta=1.0, threshold=0.0, momentum=0.0))(COND, UNCOND)
    torch.testing.assert_close(plain, COND - UNCOND)


# --- FDG ------------------------------------------------------------------------------------------------------------


def lower_band(plane: np.ndarray) -> np.ndarray:
    """Even sides: blur, halve by the mean of 2x2, double bilinearly, blur; scipy's mirror is torch's reflect."""
    window = np.array([1, 4, 6, 4, 1]) / 16

    def blurred(p: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            p = ndimage.correlate1d(p, window, axis=axis, mode="mirror")
        return p

    p = blurred(plane)
    half = (p[0::2, 0::2] + p[1::2, 0::2] + p[0::2, 1::2] + p[1::2, 1::2]) / 4
    for axis, side in enumerate(plane.shape):
        places = (np.arange(side) + 0.5) / 2 - 0.5
        half = ndimage.map_coordinates(
            half,
            np.meshgrid(*[places if a == axis else np.arange(half.shape[a]) for a in (0, 1)], indexing="ij"),
            order=1,
            mode="nearest",
        )
    return blurred(half)


def test_the_lower_band_is_that_of_a_laplacian_pyramid() -> None:
    ours = low_frequencies(COND.double())
    wanted = np.stack([[lower_band(plane.numpy()) for plane in row] for row in COND.double()])
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=0, atol=1e-12)


def test_bands_that_are_scaled_alike_are_the_whole() -> None:
    torch.testing.assert_close(by_frequency(COND, SCALE, SCALE), SCALE * COND, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (5, 7), (13, 4)])
def test_any_side_has_two_bands(sides: tuple[int, int]) -> None:
    """diffusers' guider pads to powers of two where neither side is one, and gives that size back."""
    constant = torch.ones(1, 4, *sides)
    torch.testing.assert_close(by_frequency(constant, 2.0, 10.0), 2 * constant, rtol=1e-5, atol=1e-5)


# --- dynamic thresholding -------------------------------------------------------------------------------------------


def test_a_threshold_brings_the_range_of_a_mild_scale() -> None:
    guided, mild = UNCOND + SCALE * (COND - UNCOND), UNCOND + 2 * (COND - UNCOND)
    squeezed = thresholded(guided, mild, DynamicThresholdingConfig(mimic=2.0))
    dims = (2, 3)

    def reach(x: Tensor) -> Tensor:
        return (x - x.mean(dim=dims, keepdim=True)).abs().amax(dim=dims)

    torch.testing.assert_close(squeezed.mean(dim=dims), guided.mean(dim=dims), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reach(squeezed), torch.minimum(reach(mild), reach(guided)), rtol=1e-5, atol=1e-5)
    spread = thresholded(guided, mild, DynamicThresholdingConfig(mimic=2.0, measure="std"))
    torch.testing.assert_close(spread.std(dim=dims), mild.std(dim=dims), rtol=1e-5, atol=1e-5)


def test_a_percentile_cuts_what_is_beyond_it() -> None:
    guided, mild = UNCOND + SCALE * (COND - UNCOND), UNCOND + 0.5 * (COND - UNCOND)
    squeezed = thresholded(guided, mild, DynamicThresholdingConfig(percentile=0.9))
    centred = guided - guided.mean(dim=(2, 3), keepdim=True)
    own = torch.quantile(centred.abs().flatten(2), 0.9, dim=2)[..., None, None]
    at_the_end = (squeezed - guided.mean(dim=(2, 3), keepdim=True)).abs()
    wanted = (mild - mild.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(2, 3), keepdim=True).expand_as(at_the_end)
    beyond = centred.abs() >= own
    assert 0.05 < beyond.float().mean() < 0.15
    torch.testing.assert_close(at_the_end[beyond], wanted[beyond], rtol=1e-4, atol=1e-5)


def test_a_threshold_may_be_mixed_in_or_left_out() -> None:
    config = DynamicThresholdingConfig(phi=0.0)
    assert torch.equal(thresholded(COND, UNCOND, config), COND)
    torch.testing.assert_close(thresholded(COND, COND, DynamicThresholdingConfig()), COND, rtol=1e-5, atol=1e-5)
    assert thresholded(torch.ones(SHAPE), COND, DynamicThresholdingConfig()).isfinite().all()


# --- rescale --------------------------------------------------------------------------------------------------------


def v(prediction: Tensor) -> Tensor:
    """What a network that predicts v says where the clean latent is `prediction`."""
    return (eps(prediction) - SIGMA * prediction) / (1 + SIGMA**2) ** 0.5


@pytest.mark.parametrize(("space", "raw"), [("eps", eps), ("v", v)])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaling_is_diffusers_on_what_a_network_of_that_kind_says(space: str, raw: object, phi: float) -> None:
    assert callable(raw)
    guided = UNCOND + SCALE * (COND - UNCOND)
    ours = rescaled(guided, COND, X, SIGMA, RescaleConfig(phi=phi, space=space))
    assert relative_error(raw(ours), rescale_noise_cfg(raw(guided), raw(COND), phi)) < TOLERANCE


def test_the_two_spaces_differ() -> None:
    guided = UNCOND + SCALE * (COND - UNCOND)
    a, b = (rescaled(guided, COND, X, SIGMA, RescaleConfig(space=space)) for space in ("eps", "v"))
    assert relative_error(a, b) > 0.01
    assert relative_error(rescaled(COND, COND, X, SIGMA, RescaleConfig()), COND) < TOLERANCE
