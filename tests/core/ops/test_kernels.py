"""Triton kernels against PyTorch's own layers in float64: on the GPU, and by Triton's interpreter without one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
activations = pytest.importorskip("sdxl_core.ops.kernels.activations")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
on_gpu_alone = pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter")
# Rounding to the dtype is a third of its epsilon, relative to the norm; float32 sums of thousands add a few.
LIMIT = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(*shape, generator=draw).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def silu_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, shift: Tensor | None, *, silu: bool) -> Tensor:
    wide = x.double() if shift is None else x.double() + shift.double().reshape(-1, shift.shape[-1], 1, 1)
    normed = F.group_norm(wide, groups, weight.double(), bias.double(), 1e-5)
    return F.silu(normed) if silu else normed


# (b, c, h, w, groups, programs): the last says into how many chunks a map is cut.
SMALL = [(1, 64, 3, 5, 32, 512), (2, 96, 9, 8, 32, 2), (2, 10, 70, 1, 2, 512), (1, 64, 20, 30, 32, 2)]
FULL = [(2, 320, 128, 128), (2, 960, 64, 64), (2, 2560, 32, 32), (1, 128, 512, 500), (1, 4096, 3, 3)]
MAPS = [
    *((shape, torch.float32) for shape in SMALL),
    *(((*shape, 32, 512), torch.float16) for shape in FULL),
    ((2, 1920, 32, 32, 32, 512), torch.bfloat16),
]


def here(cases: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> pytest.MarkDecorator:
    """The cases that can be run here; each dtype of each size is another compilation."""
    small = [(shape, dtype) for shape, dtype in cases if dtype is torch.float32 or not INTERPRETED]
    return pytest.mark.parametrize(("shape", "dtype"), small, ids=str)


@pytest.mark.gpu
@here(MAPS)
def test_group_norm(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdxl_core.ops.kernels import norms

    b, c, height, width, groups, programs = shape
    monkeypatch.setattr(norms, "_PROGRAMS", programs)
    x, weight, bias = (
        drawn(b, c, height, width, dtype=dtype),
        drawn(c, dtype=dtype, seed=1),
        drawn(c, dtype=dtype, seed=2),
    )
    for silu, shift in [(False, None), (True, drawn(1, c, dtype=dtype)), (True, drawn(b, 3 * c, dtype=dtype)[:, c:-c])]:
        normed = norms.group_norm(x, weight, bias, groups, 1e-5, silu=silu, shift=shift)
        assert normed.is_contiguous(memory_format=torch.channels_last)
        assert normed.dtype == dtype
        assert relative(normed, silu_norm(x, weight, bias, groups, shift, silu=silu)) < LIMIT[dtype]


@pytest.mark.gpu
def test_a_group_far_from_zero_keeps_its_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where squares less the square of the mean leave no digit; and where a chunk begins unlike its rest."""
    from sdxl_core.ops.kernels import norms

    monkeypatch.setattr(norms, "_PROGRAMS", 2)
    x = drawn(1, 64, 20, 30) + 3e3
    one, zero = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    begun = x.clone(memory_format=torch.channels_last)
    begun[:, :, :3] = 0
    for given in (x, begun):
        normed = norms.group_norm(given, one, zero, 32, 1e-5, silu=False)
        # Floats near 3000 lie 2^-12 apart: the mean of a chunk and that of all are both rounded to one.
        assert relative(normed, silu_norm(given, one, zero, 32, None, silu=False)) < 2**-11


@pytest.mark.gpu
@on_gpu_alone
def test_the_bits_are_the_same_at_every_run() -> None:
    from sdxl_core.ops.kernels.norms import group_norm

    x, weight = drawn(2, 320, 64, 64, dtype=torch.float16), drawn(320, dtype=torch.float16)
    once, again = (group_norm(x, weight, weight, 32, 1e-5, silu=True) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.gpu
@here([((2, 10, 3, 5), torch.float32), ((1, 320, 9, 8), torch.float16), ((1, 320, 9, 8), torch.bfloat16)])
def test_add(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from sdxl_core.ops.kernels.norms import add

    x, y, bias = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=1), drawn(shape[1], dtype=dtype)
    exact = x.double() + y.double()
    assert relative(add(x, y, None), exact) < LIMIT[dtype]
    summed = add(x, y, bias)
    assert summed.is_contiguous(memory_format=torch.channels_last)
    assert relative(summed, exact + bias.double()[:, None, None]) < LIMIT[dtype]


@pytest.mark.gpu
@here(
    [
        *(((5, 30), torch.float32), ((7, 640), torch.float32), ((2, 8192), torch.float32), ((3, 2), torch.float32)),
        *(((2048, 1280), torch.float16), ((3, 640), torch.bfloat16), ((20000, 640), torch.float16)),
    ]
)
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from sdxl_core.ops.kernels.layer_norms import layer_norm

    m, c = shape
    x, delta = drawn(m, c, dtype=dtype), drawn(m, c, dtype=dtype, seed=1)
    weight, bias, delta_bias = (drawn(c, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    for added in (None, delta):
        for offset in (None, delta_bias):
            wanted = x.double() if added is None else x.double() + added.double()
            summed, normed = layer_norm(x, weight, bias, 1e-5, delta=added, delta_bias=offset)
            assert summed is x if added is None else relative(summed, wanted) < LIMIT[dtype]
            wanted = wanted if offset is None else wanted + offset.double()
            exact = F.layer_norm(wanted, (c,), weight.double(), bias.double(), 1e-5)
            assert normed.dtype == dtype
            assert relative(normed, exact) < LIMIT[dtype]


@triton.jit
def _activated(x, of_gelu, of_silu, LINE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * LINE + tl.arange(0, LINE)
    value = tl.load(x + at)
    tl.store(of_gelu + at, activations.gelu(value))
    tl.store(of_silu + at, activations.silu(value))


@pytest.mark.gpu
def test_activations_are_as_right_as_they_say() -> None:
    x = torch.linspace(-80, 80, 2**16, device=DEVICE)
    gelu, silu = torch.empty_like(x), torch.empty_like(x)
    _activated[(2**4,)](x, gelu, silu, LINE=2**12)
    assert ((gelu.double() - F.gelu(x.double())).abs() < (5e-7 * x.double().abs()).clamp(min=4e-6)).all()
    exact = F.silu(x.double())
    far = x < -8
    assert ((silu.double() - exact) / exact)[~far].abs().max() < 2e-6
    assert (silu.double() - exact)[far].abs().max() < 1e-8


@pytest.mark.gpu
@here([((3, 20), torch.float32), ((9, 1280), torch.float32), ((2048, 5120), torch.float16), ((7, 64), torch.bfloat16)])
def test_geglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from sdxl_core.ops.kernels.gates import geglu

    m, n = shape
    h, bias = drawn(m, 2 * n, dtype=dtype), drawn(2 * n, dtype=dtype)
    for added in (None, bias):
        value, gate = (h.double() if added is None else h.double() + added.double()).chunk(2, dim=1)
        assert relative(geglu(h, added), value * F.gelu(gate)) < LIMIT[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "largest"),
    [((3, 20), 64), ((2, 2, 150), 64), pytest.param((64, 40000), 16384, marks=on_gpu_alone)],
    ids=str,
)
def test_softmax(shape: tuple[int, ...], largest: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are held whole, and longer ones, whose largest score comes late."""
    from sdxl_core.ops.kernels import scores

    monkeypatch.setattr(scores, "_LARGEST", largest)
    given = 30 * drawn(*shape)
    given[..., -1] = 200
    given[..., -2] = 199
    weights = scores.softmax(given, 0.25, dtype)
    assert weights.dtype == dtype
    assert relative(weights, (0.25 * given.double()).softmax(-1)) < LIMIT[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 10), (1, 1, 1, 80), pytest.param((1, 100, 80, 512), marks=on_gpu_alone)], ids=str
)
def test_interleave(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from sdxl_core.ops.kernels.doubling import interleave

    b, height, width, c = shape
    maps, bias = drawn(b, 4 * c, height + 1, width + 1, dtype=dtype), drawn(c, dtype=dtype)
    out = interleave(maps, bias)
    assert out.shape == (b, c, 2 * height, 2 * width)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        part = maps[:, (2 * row + column) * c :][:, :c, row : row + height, column : column + width]
        assert relative(out[:, :, row::2, column::2], part.double() + bias.double()[:, None, None]) < LIMIT[dtype]


@pytest.mark.gpu
@here(
    [
        ((2, 10, 3, 5, 7), torch.float32),
        ((2, 1280, 640, 32, 32), torch.float16),
        ((1, 640, 320, 63, 65), torch.bfloat16),
    ]
)
def test_join(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from sdxl_core.ops.kernels.joins import join

    b, first, second, height, width = shape
    x, y = drawn(b, first, height, width, dtype=dtype), drawn(b, second, height, width, dtype=dtype, seed=1)
    joined = join(x, y)
    assert joined.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(joined, torch.cat([x, y], dim=1))


@pytest.mark.skipif(INTERPRETED, reason="it is what starts the interpreter")
@pytest.mark.skipif(
    [int(part) for part in triton.__version__.split(".")[:2]] < [3, 8],
    reason="older interpreters cannot read the end of a loop from NumPy 2.4",
)
def test_the_kernels_compute_the_same_without_a_gpu() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"),
            *("tests/core/ops/test_kernels.py", "tests/core/ops/test_winograd_kernels.py"),
            "tests/core/models/test_fused_unet.py",
        ],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
