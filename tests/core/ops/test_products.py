"""Matrix products with their epilogues against float64: on the GPU, and by Triton's interpreter without one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.ops import fp8
from sdxl_core.ops.fp8 import FP8, LARGEST, WRITTEN_OUT, Scaled
from sdxl_core.ops.woven import weave

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float32 if INTERPRETED else torch.float16
on_gpu_alone = pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter, or not in it")
LIMIT = 1e-6 if INTERPRETED else 4e-4
SMALL = [(40, 64, 48), (17, 48, 16)]  # m, k, n
FULL = [(33, 48, 24), (2048, 1280, 5120), (2048, 5120, 1280), (8192, 640, 2560), (1155, 640, 1920)]
SHAPES = SMALL if INTERPRETED else FULL


def drawn(*shape: int, dtype: torch.dtype = DTYPE, seed: int = 0) -> Tensor:
    draw = torch.Generator(DEVICE).manual_seed(seed + sum(shape))
    return torch.randn(*shape, device=DEVICE, generator=draw).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool) -> Tensor:
    out = x.double() @ weight.double().t()
    if bias is not None:
        out = out + bias.double()
    if gated:
        value, gate = out.chunk(2, 1)
        out = value * F.gelu(gate)
    return out


def wide(x: Scaled) -> Tensor:
    return x.values.double() * x.scale.double()[:, None]


def tilings() -> list[Any]:
    """The one that is chosen, and small ones that between them have all switches on: each takes a second to make."""
    from sdxl_core.ops.kernels.products import Tiling

    rows, depth = (16, 32) if INTERPRETED else (64, 64)
    others = [Tiling(rows, 32, depth, 4, 2, lasting=True)]
    if INTERPRETED or torch.cuda.get_device_capability()[0] == 9:
        others += [Tiling(rows, 32, depth, 4, 2, described=True, lasting=lasting) for lasting in (False, True)]
    return [None, *others]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gated_in_sixteen_bits(shape: tuple[int, int, int]) -> None:
    from sdxl_core.ops.kernels.products import gated_linear

    m, k, n = shape
    x, weight, bias = drawn(m, k), drawn(2 * n, k, seed=1) * k**-0.5, drawn(2 * n, seed=2)
    for tiling in tilings():
        out = gated_linear(x, weave(weight), bias, tiling)
        assert out.dtype == DTYPE
        assert relative(out, layer(x, weight, bias, gated=True)) < LIMIT, tiling
    assert relative(gated_linear(x, weave(weight), None), layer(x, weight, None, gated=True)) < LIMIT


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_eight_bits(shape: tuple[int, int, int], gated: bool) -> None:
    """What is left is rounding of the result, and on a Hopper GPU of sums that are kept in fewer bits."""
    from sdxl_core.ops.kernels.products import scaled_linear

    m, k, n = shape
    x, weight = fp8.quantise(drawn(m, k)), fp8.quantise(drawn(2 * n if gated else n, k, seed=1) * k**-0.5)
    given = Scaled(weave(weight.values), weight.scale) if gated else weight
    bias, limit = drawn(len(given.scale), seed=2) if gated else None, LIMIT if INTERPRETED else 5e-3
    for tiling in tilings():
        out = scaled_linear(x, given, bias, gated=gated, tiling=tiling, dtype=DTYPE)
        assert out.dtype == DTYPE
        assert relative(out, layer(wide(x), wide(weight), bias, gated=gated)) < limit, tiling


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 200, pytest.param(5120, marks=on_gpu_alone)])
def test_rows_are_rounded_as_pytorch_rounds_them(k: int) -> None:
    from sdxl_core.ops.kernels.quantise import quantise

    x = drawn(16, k, dtype=torch.float32)
    if INTERPRETED:  # it loses the carry of a mantissa, so what is given needs no rounding
        x = x.to(FP8).float()
        x[:, 0] = LARGEST
        x *= 2.0 ** torch.arange(-8, 8)[:, None]
    x[3] = 0.0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded, expected = quantise(x.to(dtype)), fp8.quantise(x.to(dtype))
        assert torch.equal(rounded.scale, expected.scale)
        differ = (rounded.values.float() - expected.values.float()).abs()
        # A quotient that is rounded otherwise in its last bit may fall to the other side of a tie, and no further.
        assert torch.all(differ <= expected.values.float().abs() / 8 + 2**-9)
        assert (differ > 0).float().mean() < (1e-9 if INTERPRETED else 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("c", [64, pytest.param(1280, marks=on_gpu_alone)])
def test_norm_in_eight_bits(c: int) -> None:
    from sdxl_core.ops.kernels.layer_norms import layer_norm_in_eight_bits

    x, bias = drawn(9, c), 0.1 * drawn(c, seed=1)
    weight = 2.0 ** -torch.arange(c, device=DEVICE).remainder(8).to(DTYPE)
    if INTERPRETED:  # see above: signs in balance, whose norm is weight or -weight
        x, bias = torch.cat([torch.ones(9, c // 2), -torch.ones(9, c // 2)], dim=1), torch.zeros(c)
    lacking = torch.full_like(x[0], 2.0)
    normed = layer_norm_in_eight_bits(x - 2.0, weight, bias, 1e-5, delta_bias=lacking)
    expected = WRITTEN_OUT.norm(x - 2.0, weight, bias, 1e-5, delta_bias=lacking)
    assert relative(normed.scale, expected.scale) < 1e-6
    differ = (normed.values.float() - expected.values.float()).abs()
    assert torch.all(differ <= expected.values.float().abs() / 8 + 2**-9)
    assert (differ > 0).float().mean() < (1e-9 if INTERPRETED else 1e-3)


@pytest.mark.gpu
@on_gpu_alone
def test_a_row_with_a_nan_or_an_infinity_gives_nan_and_no_other_does() -> None:
    from sdxl_core.ops.kernels.products import scaled_linear
    from sdxl_core.ops.kernels.quantise import quantise

    x, weight = drawn(130, 256, dtype=torch.float16), fp8.quantise(drawn(64, 256, dtype=torch.float16, seed=1))
    x[1, 3], x[2, 5], x[3, 7] = torch.inf, -torch.inf, torch.nan
    out = scaled_linear(quantise(x), weight, dtype=torch.float16)
    assert out[1:4].isnan().all()
    assert out[4:].isfinite().all()
    assert out[0].isfinite().all()


@pytest.mark.gpu
@on_gpu_alone
def test_the_same_bits_at_every_run() -> None:
    from sdxl_core.ops.kernels.products import gated_linear

    x, weight, bias = drawn(2048, 1280), drawn(2560, 1280, seed=1), drawn(2560, seed=2)
    for tiling in tilings():
        assert torch.equal(gated_linear(x, weight, bias, tiling), gated_linear(x, weight, bias, tiling))


@pytest.mark.gpu
@on_gpu_alone
def test_gates_are_woven_on_a_hopper_gpu_where_tiles_are_whole() -> None:
    from sdxl_core.ops.kernels.products import gate_of_woven

    hopper = torch.cuda.get_device_capability()[0] == 9
    for k, n, is_whole in ((1280, 5120, True), (640, 2560, True), (32, 128, False), (64, 64, False)):
        x, weight = drawn(300, k), drawn(2 * n, k, seed=1) * k**-0.5
        bias = drawn(2 * n, seed=2)
        gated = gate_of_woven(weight)
        assert (gated is not None) == (hopper and is_whole)
        if gated is not None:
            assert relative(gated(x, weave(weight), bias), layer(x, weight, bias, gated=True)) < LIMIT
    assert gate_of_woven(drawn(10240, 1280, dtype=torch.float32)) is None


@pytest.mark.skipif(INTERPRETED, reason="it is what starts the interpreter")
def test_by_the_interpreter() -> None:
    """The tests above, in a process of its own: Triton asks once, at its import, whether it is to interpret."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    given = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
