"""Eight-bit floats: what rounding costs, that powers known beforehand are enough, and that rows do not touch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.ops import fp8
from sdxl_core.ops.fp8 import FP8, LARGEST, gate_powers, norm_power, power, quantised, weight_power

ONE = torch.ones(())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("factor", [1.0, 2.0**-5, 2.0**6])
def test_each_number_is_within_a_sixteenth_or_half_a_step_of_the_smallest(factor: float) -> None:
    x = drawn(64, 300)
    rounded = quantised(x, factor)
    assert rounded.dtype == FP8
    error = (rounded.double() / factor - x).abs()
    assert torch.all(error <= torch.maximum(x.abs().double() / 16, torch.tensor(2**-10 / factor)))


def test_numbers_of_the_format_come_back_and_what_is_too_large_is_the_largest() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    every = every[every.isfinite()]
    assert torch.equal(quantised(every * 2**20, 2.0**-20).float(), every)
    beyond = quantised(torch.tensor([449.0, -1e30, torch.inf, -torch.inf, torch.nan]), 1.0).float()
    assert torch.equal(beyond[:4], torch.tensor([LARGEST, -LARGEST, LARGEST, -LARGEST]))
    assert beyond[4].isnan()


@pytest.mark.parametrize(
    ("number", "expected"), [(448.0, 1.0), (449.0, 0.5), (1.0, 256.0), (7.0, 64.0), (0.0, 1.0), (math.nan, 1.0)]
)
def test_a_power_of_two_brings_a_number_just_into_range(number: float, expected: float) -> None:
    assert power(torch.tensor(number)) == expected


def test_a_product_of_normal_numbers_is_about_four_hundredths_off() -> None:
    for k in (640, 1280, 5120):
        x, weight = drawn(64, k), drawn(96, k, seed=1)
        to_x, to_weight = 2.0**3, weight_power(weight)
        scales = torch.tensor(1 / to_x), torch.tensor(1 / to_weight)
        product = fp8.linear(quantised(x, to_x), quantised(weight, to_weight), *scales, torch.float32)
        assert 0.030 < relative(product, x.double() @ weight.double().t()) < 0.042


def test_no_row_of_a_norm_is_out_of_range_and_each_is_that_of_pytorch() -> None:
    x, weight, bias, lacking = drawn(5, 64), drawn(64, seed=3), drawn(64, seed=4), drawn(64, seed=5)
    top = (8 * weight.abs() + bias.abs()).argmax()
    x[1], x[1, top] = 0.0, 1e4 * (weight * bias).sign()[top]  # all else is nothing beside it
    factor = norm_power(weight, bias)
    late = drawn(5, 64, seed=6)
    late[1] = 0.0
    summed, normed = fp8.norm(x, weight * factor, bias * factor, 1e-5, delta=late, delta_bias=lacking)
    assert torch.equal(summed, x + late)
    exact = F.layer_norm(x + late + lacking, (64,), weight, bias, 1e-5) * factor
    assert torch.all((normed.float() - exact).abs() <= exact.abs() / 16 + 2**-10)
    assert LARGEST / 2.1 < normed.float().abs().max() == normed[1].float().abs().max()
    assert fp8.norm(x, weight, bias, 1e-5)[0] is x


def test_rows_do_not_touch_one_another_and_nan_stays() -> None:
    weight, bias = drawn(64), drawn(64, seed=1)
    x = drawn(4, 64, seed=2)
    broken = x.clone()
    broken[0, 3], broken[1, 5] = torch.nan, torch.inf
    _, normed = fp8.norm(broken, weight, bias, 1e-5)
    _, whole = fp8.norm(x, weight, bias, 1e-5)
    assert normed[:2].float().isnan().all()
    assert torch.equal(normed[2:].float(), whole[2:].float())
    matrix = quantised(drawn(32, 64, seed=3), 1.0)
    out = fp8.gated(normed, matrix, torch.zeros(32), 1.0, 1.0).float()
    assert out[:2].isnan().all()
    assert torch.equal(out[2:], fp8.gated(whole, matrix, torch.zeros(32), 1.0, 1.0).float()[2:])


@pytest.mark.parametrize("gain", [1.0, 0.01, 30.0])
def test_features_of_a_gate_are_about_as_large_as_is_aimed_at(gain: float) -> None:
    n, k = 96, 256
    sizes = torch.exp(2 * drawn(2 * n, 1, seed=2))
    weight, bias = sizes * drawn(2 * n, k, seed=1) / k**0.5, 0.1 * drawn(2 * n, seed=3)
    norm_weight, norm_bias = gain * torch.exp(drawn(k, seed=4)), 0.2 * drawn(k, seed=5)
    x = F.layer_norm(drawn(2000, k), (k,), norm_weight, norm_bias)
    value, gate = (x @ weight.t() + bias).chunk(2, dim=1)
    usual = ((value * F.gelu(gate)) * gate_powers(weight, bias, norm_weight, norm_bias)).square().mean(0).sqrt()
    # Powers of two leave a factor of two, GELU takes more where gates are small or below zero.
    assert usual.max() < 1.5
    assert 0.2 < usual.median() < 0.75


def test_a_feature_of_which_nothing_is_known_stays_as_it_is() -> None:
    weight = drawn(8, 16)
    weight[1], weight[2, 3] = 0.0, torch.nan
    powers = gate_powers(weight, torch.zeros(8), torch.ones(16), torch.zeros(16))
    assert torch.equal(powers[1:3], torch.ones(2))


def test_gate_is_that_of_pytorch() -> None:
    x, weight, bias = quantised(drawn(5, 64), 4.0), quantised(drawn(32, 64, seed=1), 4.0), drawn(32, seed=2)
    value, gate = (x.double() @ weight.double().t()).chunk(2, dim=1)
    exact = (value / 64 + bias[:16]) * F.gelu(gate / 16 + bias[16:])
    out = fp8.gated(x, weight, bias, 2.0**-6, 2.0**-4)
    assert torch.all((out.double() - exact).abs() <= exact.abs() / 15.9 + 2**-10)
    assert fp8.linear(x, weight, ONE, ONE, torch.bfloat16).dtype == torch.bfloat16
