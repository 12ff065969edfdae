import math

import pytest
import torch
from torch import Tensor

from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.discretization import sigma_to_fractional_timestep
from sdxl_core.types import Conditioning

EPS = Denoiser(DenoiserConfig())
COND = Conditioning(torch.zeros(2, 77, 8), torch.zeros(2, 6))


class Recorder:
    """A network that keeps what it was given and answers with a fixed tensor."""

    def __init__(self, out: Tensor) -> None:
        self.out = out

    def __call__(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        self.x_in, self.c_noise, self.cond = x_in, c_noise, cond
        return self.out


def latents(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, out = torch.randn(2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    return x.to(dtype), out.to(dtype)


@pytest.mark.parametrize("index", [0, 137, 500, 999])
@pytest.mark.parametrize("scaling", ["eps", "v"])
def test_exact_levels_recover_the_clean_latent(scaling: str, index: int) -> None:
    denoiser = Denoiser(DenoiserConfig(scaling=scaling))  # type: ignore[arg-type]
    x0, eps = latents(torch.float64)
    sigma = float(denoiser.table[index])
    kept = 1 / (1 + sigma**2)
    target = eps if scaling == "eps" else math.sqrt(kept) * eps - math.sqrt(1 - kept) * x0
    network = Recorder(target)
    denoised = denoiser(network, x0 + sigma * eps, sigma, COND)
    torch.testing.assert_close(denoised, x0, rtol=1e-9, atol=1e-9)
    assert network.c_noise.tolist() == [index, index]
    torch.testing.assert_close(network.x_in, (x0 + sigma * eps) * math.sqrt(kept))
    assert network.cond is COND


def test_a_level_between_two_is_replaced_by_the_nearest_in_every_coefficient() -> None:
    low, high = (float(s) for s in EPS.table[[700, 701]])
    x, out = latents()
    for share, index in ((0.49, 700), (0.51, 701)):
        sigma = low + share * (high - low)
        network = Recorder(out)
        denoised = EPS(network, x, sigma, COND)
        exact = EPS(Recorder(out), x, float(EPS.table[index]), COND)
        assert torch.equal(denoised, exact)
        assert network.c_noise.tolist() == [index, index]


@pytest.mark.parametrize(("sigma", "index"), [(1e-3, 0), (80.0, 999)])
def test_a_level_beyond_the_table_is_replaced_by_its_end(sigma: float, index: int) -> None:
    x, out = latents()
    network = Recorder(out)
    EPS(network, x, sigma, COND)
    assert network.c_noise.tolist() == [index, index]


@pytest.mark.parametrize("scaling", ["eps", "v", "edm", "edm_v", "flow"])
def test_without_quantization_the_level_is_kept(scaling: str) -> None:
    denoiser = Denoiser(DenoiserConfig(scaling=scaling), "none")  # type: ignore[arg-type]
    x, out = latents(torch.float64)
    network = Recorder(out)
    denoised = denoiser(network, x, 1.2345, COND)
    told = {
        "edm": math.log(1.2345) / 4,
        "edm_v": math.log(1.2345) / 4,
        "flow": 1000 * 1.2345 / 2.2345,
    }.get(scaling, sigma_to_fractional_timestep(1.2345, denoiser.table.tolist()))
    assert network.c_noise.tolist() == pytest.approx([told] * 2, rel=1e-12)
    v = x / (1.2345**2 + 1) - out * 1.2345 / math.sqrt(1.2345**2 + 1)
    expected = {
        "eps": x - 1.2345 * out,
        "v": v,
        "edm_v": v,
        "flow": (x - 1.2345 * out) / 2.2345,
        "edm": x * 0.25 / (1.2345**2 + 0.25) + out * 1.2345 * 0.5 / math.sqrt(1.2345**2 + 0.25),
    }[scaling]
    torch.testing.assert_close(denoised, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaling", ["edm", "edm_v", "flow"])
def test_a_network_of_every_level_has_no_table_to_quantize_to(scaling: str) -> None:
    x, out = latents()
    network = Recorder(out)
    Denoiser(DenoiserConfig(scaling=scaling), "level")(network, x, 1.2345, COND)  # type: ignore[arg-type]
    told = 1000 * 1.2345 / 2.2345 if scaling == "flow" else math.log(1.2345) / 4
    assert network.c_noise.tolist() == pytest.approx([told] * 2)


def test_snapping_the_index_alone_takes_the_nearest_in_the_logarithm_and_keeps_sigma() -> None:
    low, high = (float(s) for s in EPS.table[[5, 6]])
    x, out = latents()
    sigma = math.sqrt(low * high) * 1.0001  # beyond the middle in ln(sigma), before the middle in sigma
    assert sigma < (low + high) / 2
    network = Recorder(out)
    denoised = EPS.snapping("index")(network, x, sigma, COND)
    assert network.c_noise.tolist() == [6, 6]
    torch.testing.assert_close(denoised, x - sigma * out)
    EPS(network, x, sigma, COND)
    assert network.c_noise.tolist() == [5, 5]
    assert EPS.snapping("level") is EPS


@pytest.mark.parametrize("snap", ["level", "index", "none"])
@pytest.mark.parametrize("scaling", ["eps", "v", "edm", "edm_v", "flow"])
def test_one_level_a_picture_gives_what_each_level_gives_alone(scaling: str, snap: str) -> None:
    denoiser = Denoiser(DenoiserConfig(scaling=scaling), snap)  # type: ignore[arg-type]
    x, out = latents()
    sigma = torch.tensor([0.4567, 9.876])
    network = Recorder(out)
    together = denoiser(network, x, sigma, COND)
    for i, level in enumerate(sigma.tolist()):
        alone_network = Recorder(out[i : i + 1])
        alone = denoiser(alone_network, x[i : i + 1], level, COND)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(network.c_noise[i : i + 1], alone_network.c_noise)
        torch.testing.assert_close(network.x_in[i : i + 1], alone_network.x_in)


def test_a_concat_condition_joins_the_scaled_latent() -> None:
    x, out = latents()
    extra = torch.randn(2, 5, 3, 5, generator=torch.Generator().manual_seed(2))
    network = Recorder(out)
    EPS(network, x, 1.0, Conditioning(COND.crossattn, COND.vector, extra))
    assert network.x_in.shape == (2, 9, 3, 5)
    assert torch.equal(network.x_in[:, 4:], extra)
    assert network.x_in[:, :4].std() < x.std() * 0.8


def test_arithmetic_stays_float32_around_a_bfloat16_network() -> None:
    x, out = latents()
    denoised = EPS(Recorder(out.bfloat16()), x, 14.6, COND)
    assert denoised.dtype == torch.float32
    expected = EPS(Recorder(out.bfloat16().float()), x, 14.6, COND)
    assert torch.equal(denoised, expected)


def test_levels_and_pictures_must_be_as_many() -> None:
    x, out = latents()
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\), x has 2 rows"):
        EPS(Recorder(out), x, torch.ones(3), COND)


def test_the_network_learns_through_it() -> None:
    x, out = latents()
    out.requires_grad_()
    EPS(Recorder(out), x, torch.tensor([1.0, 2.0]), COND).sum().backward()
    assert out.grad is not None
    assert out.grad.abs().min() > 0
