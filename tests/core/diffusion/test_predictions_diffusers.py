"""What a network predicts, against diffusers: one random network under both, Euler steps over the same levels.

diffusers is told our levels and what its scheduler of that kind tells the network of them; how the network's input is
scaled and its output read is its own.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from support_closed_form import silence, steps
from torch import Tensor

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.discretization import trained_levels
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.types import Conditioning, Prediction

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
N = 20
COND = Conditioning(torch.zeros(1, 1, 1), torch.zeros(1, 1))


class Net:
    """Two random convolutions, moved by what the network is told of the level."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.first = torch.randn(8, 4, 3, 3, generator=generator) / 6
        self.second = torch.randn(4, 8, 3, 3, generator=generator) / 8

    def __call__(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning = COND) -> Tensor:
        phase = torch.as_tensor(c_noise, dtype=x_in.dtype).reshape(-1, 1, 1, 1) / 1000
        hidden = torch.tanh(torch.nn.functional.conv2d(x_in, self.first, padding=1) + torch.sin(7 * phase))
        return torch.nn.functional.conv2d(hidden, self.second, padding=1) * (1 + phase)


NET = Net()
NOISE = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(5))


def ours(config: DenoiserConfig, sigmas: Sequence[float], x: Tensor) -> Tensor:
    denoiser = Denoiser(config)
    return steps("euler", lambda x, sigma: Prediction(denoiser(NET, x, sigma, COND)), x, sigmas, silence)[-1].x


def theirs(scheduler: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(NET(scaled, t), t, x).prev_sample
    return x


def put_levels(scheduler: Any, sigmas: Sequence[float], told: Sequence[float]) -> Any:
    scheduler.set_timesteps(N)
    scheduler.sigmas, scheduler.timesteps = torch.tensor(sigmas), torch.tensor(told)
    scheduler.set_begin_index(0)
    return scheduler


def assert_near(mine: Tensor, other: Tensor) -> None:
    assert float((mine - other).norm() / other.norm()) < 1e-5


@pytest.mark.parametrize(("scaling", "tail"), [("eps", None), ("v", None), ("v", "comfy"), ("v", "diffusers")])
def test_eps_and_v_on_a_table(scaling: Any, tail: Any) -> None:
    config = DenoiserConfig(scaling=scaling, zero_terminal_snr=tail)
    sigmas = resolve_sigmas(DiscretizationConfig(), N, config)
    prediction = {"eps": "epsilon", "v": "v_prediction"}[scaling]
    scheduler = EulerDiscreteScheduler(**BETAS, prediction_type=prediction, rescale_betas_zero_snr=tail is not None)
    put_levels(scheduler, sigmas, [float(i) for i in range(999, 0, -50)])
    assert [float(trained_levels(config)[int(t)]) for t in scheduler.timesteps] == list(sigmas[:-1])
    x = NOISE * sigmas[0]
    assert_near(ours(config, sigmas, x), theirs(scheduler, x))


@pytest.mark.parametrize(("scaling", "prediction", "data"), [("edm", "epsilon", 0.5), ("edm_v", "v_prediction", 1.0)])
def test_edm_and_cosxl_over_their_ranges(scaling: Any, prediction: str, data: float) -> None:
    config = DenoiserConfig(scaling=scaling)
    sigmas = resolve_sigmas(DiscretizationConfig(name="edm", rho=7.0), N, config)
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=sigmas[0], sigma_data=data, prediction_type=prediction)
    scheduler.set_timesteps(N)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(sigmas), rtol=1e-5, atol=0)
    put_levels(scheduler, sigmas, [float(scheduler.precondition_noise(torch.tensor(s))) for s in sigmas[:-1]])
    x = NOISE * sigmas[0]
    assert_near(ours(config, sigmas, x), theirs(scheduler, x))


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_flow_on_its_own_line(shift: float) -> None:
    config = DenoiserConfig(scaling="flow", shift=shift)
    sigmas = resolve_sigmas(DiscretizationConfig(), N, config)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # It is told the times before the shift and shifts them itself; ours are shifted already.
    scheduler.set_timesteps(sigmas=[s / shift / (1 + s / shift) for s in sigmas[:-1]])
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([s / (1 + s) for s in sigmas]), rtol=1e-6, atol=0)
    x = NOISE * sigmas[0]
    assert_near(ours(config, sigmas, x), theirs(scheduler, x / (1 + sigmas[0])))


def test_starting_a_flow_just_below_pure_noise_is_hardly_seen() -> None:
    config = DenoiserConfig(scaling="flow", shift=3.0)
    sigmas = resolve_sigmas(DiscretizationConfig(), N, config)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / N for i in range(N)])  # from t = 1
    mine, other = ours(config, sigmas, NOISE * sigmas[0]), theirs(scheduler, NOISE)
    assert float((mine - other).norm() / other.norm()) < 1e-3


def test_the_zero_terminal_table_is_that_of_diffusers() -> None:
    scheduler = EulerDiscreteScheduler(**BETAS, rescale_betas_zero_snr=True)
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    mine = torch.from_numpy(trained_levels(DenoiserConfig(scaling="v", zero_terminal_snr="diffusers")))
    # It computes in float32, ours in float64: at the start 1 - alpha_bar loses digits, at the end alpha_bar itself.
    torch.testing.assert_close(mine[:950], table[:950], rtol=2e-5, atol=0)
    torch.testing.assert_close(mine, table, rtol=2e-4, atol=0)
