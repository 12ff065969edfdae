"""Eight-bit floats: what rounding costs, and that rows do not touch one another."""

import torch
import torch.nn.functional as F

from sdxl_core.ops import fp8
from sdxl_core.ops.fp8 import FP8, LARGEST, Scaled, quantise


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wide(x: Scaled) -> torch.Tensor:
    return x.values.double() * x.scale.double()[:, None]


def multiplied(x: Scaled, weight: Scaled, bias: torch.Tensor | None = None) -> torch.Tensor:
    return fp8.linear(x, weight, bias, dtype=torch.float32)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_each_number_is_within_a_sixteenth_or_half_a_step_of_the_smallest() -> None:
    x = drawn(64, 300)
    rounded = quantise(x)
    assert rounded.values.dtype == FP8
    assert torch.equal(rounded.values.float().abs().amax(1), torch.full((64,), LARGEST))
    error = (wide(rounded) - x).abs()
    assert torch.all(
        error <= torch.maximum(x.abs().double() / 16, rounded.scale.double()[:, None] * 2**-10) * (1 + 1e-6)
    )


def test_a_product_of_normal_numbers_is_about_four_hundredths_off() -> None:
    for k in (640, 1280, 5120):
        x, weight, bias = drawn(64, k), drawn(96, k, seed=1), drawn(96, seed=2) * k**0.5
        product = multiplied(quantise(x), quantise(weight))
        assert 0.030 < relative(product, x.double() @ weight.double().t()) < 0.042
        assert torch.equal(multiplied(quantise(x), quantise(weight), bias), product + bias)


def test_numbers_of_the_format_and_of_a_power_of_two_come_back_bit_for_bit() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    rows = every[every.isfinite()].repeat(3, 1) * torch.tensor([[1.0], [2.0**-9], [2.0**20]])
    rounded = quantise(rows)
    assert torch.equal(wide(rounded).float(), rows)
    assert torch.equal(quantise(rows.bfloat16()).values.view(torch.uint8), rounded.values.view(torch.uint8))


def test_a_row_is_rounded_for_itself() -> None:
    x, weight = drawn(6, 64), quantise(drawn(16, 64, seed=1))
    plain = multiplied(quantise(x), weight)
    broken = x.clone()
    broken[0] = 0.0
    broken[1, 7] = 6e4
    broken[2, 3] = torch.inf
    broken[3, 5] = torch.nan
    broken[4] *= 1e-20
    product = multiplied(quantise(broken), weight)
    assert torch.all(product[0] == 0)
    assert product[1].isfinite().all()
    assert product[2:4].isnan().all()
    assert relative(product[4] * 1e20, plain[4]) < 1e-5
    assert torch.equal(product[5], plain[5])


def test_one_far_larger_entry_leaves_its_row_only_what_stands_out_beside_it() -> None:
    x, weight = drawn(1, 256), drawn(64, 256, seed=1)
    x[0, 0] = 100.0
    error = (wide(quantise(x)) - x).abs()[0, 1:]
    assert error.max() <= 0.13  # a step of 1/8 of a number below 4, not of a number below 100
    assert relative(multiplied(quantise(x), quantise(weight)), x.double() @ weight.double().t()) < 0.05


def test_gate_and_norm_are_those_of_pytorch() -> None:
    x, weight, bias = drawn(5, 64), quantise(drawn(32, 64, seed=1)), drawn(32, seed=2)
    gain, shift, lacking = drawn(64, seed=3), drawn(64, seed=4), drawn(64, seed=5)
    normed = fp8.norm(x, gain, shift, 1e-5, delta_bias=lacking)
    assert torch.equal(wide(normed), wide(quantise(F.layer_norm(x + lacking, (64,), gain, shift, 1e-5))))
    value, gate = (wide(normed) @ wide(weight).t() + bias).chunk(2, dim=1)
    gated = fp8.linear(normed, weight, bias, gated=True, dtype=torch.bfloat16)
    assert gated.dtype == torch.bfloat16
    assert relative(gated, value * F.gelu(gate)) < 3e-3
