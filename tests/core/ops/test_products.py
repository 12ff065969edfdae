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

from sdxl_core.ops.fp8 import FP8, LARGEST, WRITTEN_OUT, quantised
from sdxl_core.ops.woven import weave

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float32 if INTERPRETED else torch.float16
on_gpu_alone = pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter, or not in it")
LIMIT = 5e-6 if INTERPRETED else 4e-4  # the gate is right to 4e-6
SMALL = [(40, 64, 48), (17, 48, 16)]  # m, k, n
FULL = [(33, 48, 48), (2048, 1280, 5120), (2048, 5120, 1280), (8192, 640, 2560), (1155, 640, 1920)]
SHAPES = SMALL if INTERPRETED else FULL


def drawn(*shape: int, dtype: torch.dtype = DTYPE, seed: int = 0) -> Tensor:
    draw = torch.Generator(DEVICE).manual_seed(seed + sum(shape))
    return torch.randn(*shape, device=DEVICE, generator=draw).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def geglu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.double() @ weight.double().t()
    if bias is not None:
        out = out + bias.double()
    value, gate = out.chunk(2, 1)
    return value * F.gelu(gate)


def assert_rounded(out: Tensor, exact: Tensor, *, off: float = 0.0) -> None:
    """Every number in eight bits is the nearest one or its neighbour, and nearly as near as can be.

    Args:
        out: in eight bits.
        exact: before rounding.
        off: how far a number may be from that before it is rounded, of the largest one.
    """
    assert out.dtype == FP8
    nearest = quantised(exact, 1.0).float()
    differ, step = (out.float() - nearest).abs(), nearest.abs() / 8 + 2**-9
    if INTERPRETED:  # it rounds up to a power of two wrongly
        assert (differ > step).float().mean() < 0.1
        return
    assert torch.all(differ <= step + off * exact.abs().max())
    assert relative(out.float(), exact) < 1.05 * relative(nearest, exact)


def tilings() -> list[Any]:
    """The one that is chosen, and small ones that between them have all switches on: each takes a second to make."""
    from sdxl_core.ops.kernels.products import Tiling

    rows, depth = (16, 32) if INTERPRETED else (64, 64)
    others = [Tiling(rows, 32, depth, 4, 2, lasting=2)]
    if INTERPRETED or torch.cuda.get_device_capability()[0] == 9:
        others += [Tiling(rows, 32, depth, 4, 2, described=True, lasting=lasting) for lasting in (0, 1)]
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
        assert relative(out, geglu(x, weight, bias)) < LIMIT, tiling
    assert relative(gated_linear(x, weave(weight), None), geglu(x, weight, None)) < LIMIT


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gated_in_eight_bits(shape: tuple[int, int, int]) -> None:
    """Beside rounding there is on a Hopper GPU that of sums that are kept in fewer bits."""
    from sdxl_core.ops.kernels.products import gated_in_eight_bits

    m, k, n = shape
    x, weight = quantised(drawn(m, k), 8.0), quantised(drawn(2 * n, k, seed=1), 64.0)
    scales, bias = (k**-0.5 / 512, k**-0.5 / 256), drawn(2 * n, dtype=torch.float32, seed=2)
    value, gate = (x.double() @ weight.double().t()).chunk(2, 1)
    exact = (value * scales[0] + bias[:n]) * F.gelu(gate * scales[1] + bias[n:])
    for tiling in tilings():
        assert_rounded(gated_in_eight_bits(x, weave(weight), bias, *scales, tiling), exact, off=4e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(40, 64, 48), (2048, 5120, 1280), (8192, 640, 1920), (1155, 1280, 1280)], ids=str)
def test_library_multiplies_eight_bits(shape: tuple[int, int, int]) -> None:
    from sdxl_core.ops.kernels.eight_bits import TRITON

    m, k, n = shape if not INTERPRETED else (40, 64, 48)
    x, weight = quantised(drawn(m, k), 8.0), quantised(drawn(n, k, seed=1), 64.0)
    scales = torch.tensor(1 / 8, device=DEVICE), torch.tensor(k**-0.5 / 64, device=DEVICE)
    out = TRITON.linear(x, weight, *scales, DTYPE)
    assert out.dtype == DTYPE
    exact = x.double() @ weight.double().t() * scales[0].double() * scales[1].double()
    assert relative(out, exact) < (1e-6 if INTERPRETED else 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(9, 64), pytest.param((9000, 1280), marks=on_gpu_alone)], ids=str)
@pytest.mark.parametrize("late", [False, True])
def test_norm_in_eight_bits(shape: tuple[int, int], late: bool) -> None:
    from sdxl_core.ops.kernels.eight_bits import TRITON

    m, c = shape
    x, delta, lacking = drawn(m, c), drawn(m, c, seed=1) if late else None, drawn(c, dtype=torch.float32, seed=2)
    weight, bias = drawn(c, seed=3) * 4, drawn(c, seed=4)
    summed, normed = TRITON.norm(x, weight, bias, 1e-5, delta=delta, delta_bias=lacking)
    whole = x.double() if delta is None else x.double() + delta.double()
    assert summed is x if delta is None else relative(summed, whole) < LIMIT
    assert_rounded(normed, F.layer_norm(whole + lacking, (c,), weight.double(), bias.double(), 1e-5))


@pytest.mark.gpu
@on_gpu_alone
@pytest.mark.parametrize("kernels", ["written out", "triton"])
def test_what_is_too_large_is_the_largest_and_nan_stays(kernels: str) -> None:
    from sdxl_core.ops.kernels.eight_bits import TRITON

    ways = WRITTEN_OUT if kernels == "written out" else TRITON
    k = n = 256
    x, one = drawn(130, k), torch.ones(k, device=DEVICE, dtype=DTYPE)
    x[1, 3], x[2, 5], x[3, 7] = torch.inf, -torch.inf, torch.nan
    x[4, 1:], x[4, 0] = 0.0, 1000.0
    _, normed = ways.norm(x, 100 * one, 0 * one, 1e-5)
    assert normed[1:4].float().isnan().all()
    assert normed[4, 0].float() == LARGEST
    assert normed[4:].float().isfinite().all()
    weight = ways.arrange(quantised(torch.eye(k, device=DEVICE).repeat(2, 1), 1.0))  # value and gate are the input
    out = ways.gated(normed, weight, torch.zeros(2 * n, device=DEVICE), -1e4, 1.0).float()
    assert out[1:4].isnan().all()
    assert out[4, 0] == -LARGEST
    assert out[4:].isfinite().all()
    scale = torch.ones((), device=DEVICE)
    product = ways.linear(normed, quantised(drawn(64, k, seed=1), 1.0), scale, scale, DTYPE)
    assert product[1:4].isnan().all()
    assert product[4:].isfinite().all()


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
            assert relative(gated(x, weave(weight), bias), geglu(x, weight, bias)) < LIMIT
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
