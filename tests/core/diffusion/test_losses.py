import math

import pytest
import torch
from torch import Tensor

from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.losses import StandardDiffusionLoss
from sdxl_core.diffusion.sigma_sampling import DiscreteSampling
from sdxl_core.diffusion.weighting import (
    WEIGHTINGS,
    Weighting,
    edm_weighting,
    eps_weighting,
    flow_weighting,
    unit_weighting,
    v_weighting,
)
from sdxl_core.types import Conditioning

B = 3
X0 = torch.randn(B, 4, 6, 5, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(B, 4, 6, 5, generator=torch.Generator().manual_seed(1))
OUT = torch.randn(B, 4, 6, 5, generator=torch.Generator().manual_seed(2))
COND = Conditioning(torch.zeros(B, 77, 8), torch.zeros(B, 6))
EPS = Denoiser(DenoiserConfig())
SIGMA = EPS.table[[10, 500, 990]]
UNIFORM = DiscreteSampling(EPS.table)


def fixed_answer(x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
    return OUT


def clean(x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
    """The network that would make D(x, sigma) = X0 under the eps scaling."""
    sigma = EPS.table[c_noise.long()][:, None, None, None]
    return (x_in * (sigma**2 + 1).sqrt() - X0) / sigma


def test_a_perfect_network_has_no_loss() -> None:
    losses = StandardDiffusionLoss(UNIFORM)(clean, EPS, X0, COND, torch.Generator().manual_seed(3))
    assert losses.shape == (B,)
    assert losses.max() < 1e-9


@pytest.mark.parametrize(
    ("config", "weighting"),
    [
        (DenoiserConfig(scaling="eps"), eps_weighting),
        (DenoiserConfig(scaling="v"), v_weighting),
        (DenoiserConfig(scaling="v", zero_terminal_snr="comfy"), v_weighting),
        (DenoiserConfig(scaling="edm"), edm_weighting),
        (DenoiserConfig(scaling="edm_v"), v_weighting),
        (DenoiserConfig(scaling="flow", shift=3.0), flow_weighting),
    ],
    ids=["eps", "v", "v to zero snr", "edm", "edm_v", "flow"],
)
def test_its_own_weighting_makes_the_plain_loss_on_what_the_network_predicts(
    config: DenoiserConfig, weighting: Weighting
) -> None:
    denoiser = Denoiser(config)
    sigma = denoiser.table[[10, 500, 990]]
    losses = StandardDiffusionLoss(DiscreteSampling(denoiser.table), weighting).at(
        fixed_answer, denoiser, X0, COND, sigma, NOISE
    )
    s = sigma[:, None, None, None]
    v = (NOISE - s * X0) / (s**2 + 1).sqrt()
    x = X0 + s * NOISE
    target = {
        "eps": NOISE,
        "v": v,
        "edm": (X0 - 0.25 / (s**2 + 0.25) * x) * (s**2 + 0.25).sqrt() / (0.5 * s),
        "edm_v": v,
        "flow": NOISE - X0,
    }[config.scaling]
    torch.testing.assert_close(losses, (OUT - target).square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-6)


def test_l1_is_the_mean_absolute_difference() -> None:
    losses = StandardDiffusionLoss(UNIFORM, unit_weighting, "l1").at(fixed_answer, EPS, X0, COND, SIGMA, NOISE)
    s = SIGMA[:, None, None, None]
    expected = (X0 + s * NOISE - s * OUT - X0).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_the_weight_is_applied_per_picture(name: str) -> None:
    weighted = StandardDiffusionLoss(UNIFORM, WEIGHTINGS[name]).at(fixed_answer, EPS, X0, COND, SIGMA, NOISE)
    plain = StandardDiffusionLoss(UNIFORM, unit_weighting).at(fixed_answer, EPS, X0, COND, SIGMA, NOISE)
    torch.testing.assert_close(weighted, plain * WEIGHTINGS[name](SIGMA))


def test_drawing_is_sampling_then_noise_and_repeats_with_the_seed() -> None:
    loss = StandardDiffusionLoss(UNIFORM, offset_noise=0.05)
    drawn = loss(fixed_answer, EPS, X0, COND, torch.Generator().manual_seed(4))
    again = torch.Generator().manual_seed(4)
    sigma = UNIFORM(B, again)
    expected = loss.at(fixed_answer, EPS, X0, COND, sigma, loss.draw_noise(X0, again))
    assert torch.equal(drawn, expected)
    assert not torch.equal(drawn, loss(fixed_answer, EPS, X0, COND, torch.Generator().manual_seed(5)))


def test_offset_noise_shifts_whole_channels_of_single_pictures() -> None:
    x0 = torch.zeros(64, 4, 16, 16)
    plain = StandardDiffusionLoss(UNIFORM).draw_noise(x0, torch.Generator().manual_seed(6))
    offset = StandardDiffusionLoss(UNIFORM, offset_noise=0.5).draw_noise(x0, torch.Generator().manual_seed(6))
    shift = offset - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert shift[:, :, 0, 0].std(dim=1).min() > 1e-3
    # 256 independent shifts: their standard deviation is within 4.5 standard errors of 0.5.
    assert abs(float(shift[:, :, 0, 0].std()) - 0.5) < 4.5 * 0.5 / math.sqrt(2 * 256)


def test_only_the_network_learns() -> None:
    weight = torch.ones(1, requires_grad=True)
    loss = StandardDiffusionLoss(UNIFORM)
    loss(lambda x_in, c_noise, cond: weight * x_in, EPS, X0, COND, torch.Generator().manual_seed(7)).mean().backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()
    assert weight.grad.abs() > 0
