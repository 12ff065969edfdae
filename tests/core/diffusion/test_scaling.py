import math

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler

from sdxl_core.diffusion.scaling import (
    SCALINGS,
    continuous_c_noise,
    edm_scaling,
    eps_scaling,
    flow_c_noise,
    flow_scaling,
    v_scaling,
)

LEVELS = [0.0292, 0.3, 1.0, 3.3, 14.6146]


@pytest.mark.parametrize("t", [0, 1, 250, 600, 999])
@pytest.mark.parametrize(("name", "prediction_type"), [("eps", "epsilon"), ("v", "v_prediction")])
def test_clean_latent_is_what_diffusers_recovers(name: str, prediction_type: str, t: int) -> None:
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type,
        clip_sample=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(t)
    x_vp = torch.randn(1, 4, 3, 5, generator=generator)
    out = torch.randn(1, 4, 3, 5, generator=generator)
    expected = scheduler.step(out, t, x_vp).pred_original_sample

    alpha_bar = float(scheduler.alphas_cumprod[t])
    sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
    c = SCALINGS[name](sigma, 0.5)
    x = x_vp / math.sqrt(alpha_bar)  # the same latent, in the form x0 + sigma eps
    torch.testing.assert_close(c.c_skip * x + c.c_out * out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(c.c_in * x, x_vp, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [0, 400, 999])
def test_v_is_the_velocity_of_diffusers(t: int) -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(t)
    x0, eps = torch.randn(2, 1, 4, 3, 5, generator=generator)
    velocity = scheduler.get_velocity(x0, eps, torch.tensor([t]))
    alpha_bar = float(scheduler.alphas_cumprod[t])
    sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
    c = v_scaling(sigma, 0.5)
    torch.testing.assert_close(c.c_skip * (x0 + sigma * eps) + c.c_out * velocity, x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", LEVELS)
def test_edm_is_the_preconditioning_of_diffusers(sigma: float) -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.5, prediction_type="epsilon")
    generator = torch.Generator().manual_seed(0)
    x, out = torch.randn(2, 1, 4, 3, 5, generator=generator)
    c = edm_scaling(sigma, 0.5)
    level = torch.tensor(sigma)
    torch.testing.assert_close(c.c_skip * x + c.c_out * out, scheduler.precondition_outputs(x, out, level))
    torch.testing.assert_close(c.c_in * x, scheduler.precondition_inputs(x, level))
    torch.testing.assert_close(torch.tensor(continuous_c_noise(sigma)), scheduler.precondition_noise(level))


@pytest.mark.parametrize("sigma", LEVELS)
def test_edm_of_unit_data_is_v_but_for_the_sign(sigma: float) -> None:
    v, edm = v_scaling(sigma, 0.5), edm_scaling(sigma, 1.0)
    assert (edm.c_skip, -edm.c_out, edm.c_in) == pytest.approx((v.c_skip, v.c_out, v.c_in), rel=1e-12)


@pytest.mark.parametrize("sigma", LEVELS)
def test_network_input_and_target_have_unit_variance_under_edm(sigma: float) -> None:
    c = edm_scaling(sigma, 0.5)
    assert c.c_in**2 * (0.5**2 + sigma**2) == pytest.approx(1)
    # target = (x0 - c_skip (x0 + sigma eps)) / c_out
    assert ((1 - c.c_skip) ** 2 * 0.5**2 + c.c_skip**2 * sigma**2) / c.c_out**2 == pytest.approx(1)


@pytest.mark.parametrize("sigma", LEVELS)
def test_flow_of_a_straight_line_is_its_clean_end(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 4, 3, 5, generator=generator, dtype=torch.float64)
    t = flow_c_noise(sigma) / 1000
    c = flow_scaling(sigma, 0.5)
    x = x0 + sigma * eps
    torch.testing.assert_close(c.c_in * x, (1 - t) * x0 + t * eps)
    torch.testing.assert_close(c.c_skip * x + c.c_out * (eps - x0), x0)


@pytest.mark.parametrize("scaling", [eps_scaling, v_scaling, edm_scaling, flow_scaling])
def test_a_tensor_of_levels_gives_what_each_level_gives(scaling) -> None:  # type: ignore[no-untyped-def]
    together = scaling(torch.tensor(LEVELS, dtype=torch.float64), 0.5)
    for i, sigma in enumerate(LEVELS):
        alone = scaling(sigma, 0.5)
        for name in ("c_skip", "c_out", "c_in"):
            assert float(getattr(together, name)[i]) == pytest.approx(getattr(alone, name), rel=1e-12)
    for told in (continuous_c_noise, flow_c_noise):
        noise = told(torch.tensor(LEVELS, dtype=torch.float64))
        assert noise.tolist() == pytest.approx([told(s) for s in LEVELS], rel=1e-12)
