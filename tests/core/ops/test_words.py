"""Attention to words by our kernel against float64: on the GPU, and by Triton's interpreter without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdxl_core.ops.attention import BACKENDS, words_first

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]  # it multiplies the bits of bfloat16
on_gpu_alone = pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter, or not in it")
# b, heads, n, m: of tiles that are not full, and of keys that fill both, one or none of theirs.
SMALL = [(2, 3, 37, 77), (1, 2, 16, 17), (1, 1, 50, 128), (2, 1, 70, 231), (1, 2, 5, 32)]
FULL = [(2, 10, 4096, 77), (2, 20, 1024, 77), (8, 20, 1024, 77), (1, 20, 1023, 154), (2, 20, 961, 231), (9, 9, 99, 17)]
SHAPES = SMALL if INTERPRETED else FULL


def drawn(shape: tuple[int, int, int, int], dtype: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as the network has them, amid NaNs; scores of a deviation of `spread`."""
    b, heads, n, m = shape
    draw = torch.Generator(DEVICE).manual_seed(sum(shape))

    def amid(count: int, scale: float, start: int, width: int) -> Tensor:
        around = torch.full((b, count + 3, width), torch.nan, device=DEVICE, dtype=dtype)
        rows = around[:, :count, start : start + heads * 64]
        rows.copy_(torch.randn(rows.shape, device=DEVICE, generator=draw) * scale)
        return rows.view(b, count, heads, 64).transpose(1, 2)

    return amid(n, spread, 0, heads * 64), amid(m, 1.0, 64, heads * 192), amid(m, 1.0, heads * 64 + 64, heads * 192)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [1.0, 40.0], ids=["normal", "large"])
def test_errs_no_more_than_rounding_does(shape: tuple[int, int, int, int], dtype: torch.dtype, spread: float) -> None:
    from sdxl_core.ops.kernels.words import attend

    q, k, v = drawn(shape, dtype, spread)
    exact, out = formula(q, k, v), attend(q, k, v)
    assert out.dtype == dtype
    assert out.shape == q.shape
    assert out.transpose(1, 2).is_contiguous()
    if INTERPRETED:
        # Weights and result are rounded, each by half an epsilon at most.
        assert relative(out, exact) < 0.35 * torch.finfo(dtype).eps
    else:
        assert relative(out, exact) < 1.05 * relative(BACKENDS["cudnn_first"].fn(q, k, v), exact)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [16, 32, 128])
def test_other_widths_of_heads(head_dim: int) -> None:
    from sdxl_core.ops.kernels.words import attend

    draw = torch.Generator(DEVICE).manual_seed(head_dim)
    q, k, v = (torch.randn(2, 2, n, head_dim, device=DEVICE, generator=draw).half() for n in (33, 40, 40))
    assert relative(attend(q, k, v), formula(q, k, v)) < 0.35 * torch.finfo(q.dtype).eps


@pytest.mark.gpu
@on_gpu_alone
def test_every_launch() -> None:
    from sdxl_core.ops.kernels.words import LAUNCHES, attend

    q, k, v = drawn((2, 10, 1000, 77), torch.float16)
    exact = formula(q, k, v)
    for how in LAUNCHES:
        assert relative(attend(q, k, v, how), exact) < 4e-4, how


@pytest.mark.gpu
@on_gpu_alone
def test_a_recording_gives_the_same_bits_and_the_backend_is_this_kernel() -> None:
    from sdxl_core.ops.kernels.words import attend

    q, k, v = drawn((2, 20, 1024, 77), torch.float16)
    expected = attend(q, k, v)
    assert torch.equal(words_first(q, k, v), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = words_first(q, k, v)
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.gpu
@on_gpu_alone
def test_what_is_trained_is_left_to_a_kernel_that_has_gradients() -> None:
    q, k, v = (part.clone() for part in drawn((1, 2, 100, 77), torch.float16))
    for trained in (q, k, v):
        assert not words_first(q, k, v).requires_grad
        assert words_first(*(part.requires_grad_(part is trained) for part in (q, k, v))).requires_grad
        trained.requires_grad_(False)


@pytest.mark.skipif(INTERPRETED, reason="it is what starts the interpreter")
@pytest.mark.skipif(
    [int(part) for part in triton.__version__.split(".")[:2]] < [3, 8],
    reason="older interpreters cannot read the end of a loop from NumPy 2.4",
)
def test_by_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    given = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
