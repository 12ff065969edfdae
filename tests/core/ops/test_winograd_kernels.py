"""Winograd's sums on the GPU, and by Triton's interpreter without one, against PyTorch's convolution in float64."""

import os
from itertools import starmap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.ops.winograd import doubling_weights, summed_weights

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Of float16 and bfloat16 sums of inputs, of weights and products are rounded, each to a third of the epsilon.
LIMIT = {torch.float32: 2e-6, torch.float16: 1.2e-3, torch.bfloat16: 9e-3}

# (b, c_in, c_out, h, w, groups): blocks of 64 channels begin within a group; sizes are odd, and less than a place.
SMALL = [(2, 96, 70, 5, 7, 32), (1, 160, 16, 18, 20, 32), (2, 10, 3, 1, 2, 2), (1, 64, 64, 9, 1, 32)]
SMALL += [(1, 160, 8, 3, 3, 4)]  # a block that begins and ends within a group, with another between
FULL = [(2, 320, 320, 128, 128, 32), (2, 2560, 1280, 32, 32, 32), (3, 1920, 640, 33, 31, 32), (8, 960, 320, 64, 64, 32)]
CASES = [(shape, torch.float32) for shape in SMALL]
if not INTERPRETED:
    CASES += [*((shape, torch.float16) for shape in FULL), (FULL[1], torch.bfloat16)]


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def by_sums(x: Tensor, conv: Tensor, added: Tensor | None, bias: Tensor | None, *norm: object) -> Tensor:
    from sdxl_core.ops.kernels.winograd import normed_sums, outputs

    *norm, shift = norm  # type: ignore[assignment]
    weights = torch.stack(list(summed_weights(conv)))
    return outputs(torch.bmm(normed_sums(x, *norm, shift=shift), weights.mT), x, added, bias)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_it_is_the_convolution_behind_a_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    b, c, c_out, height, width, groups = shape
    x = drawn(b, c, height, width, seed=0, dtype=dtype) + 3
    sizes = ((c,), (c,), (c_out, c, 3, 3), (b, c_out, height, width), (c_out,), (b, 3 * c))
    weight, bias, conv, added, owed, shifts = starmap(
        lambda i, size: drawn(*size, seed=i, dtype=dtype), enumerate(sizes, 1)
    )
    conv = conv / (9 * c) ** 0.5
    for shift, summed in ((None, None), (shifts[:1, :c], added), (shifts[:, c:-c], added)):
        ours = by_sums(x, conv, summed, None if summed is None else owed, weight, bias, groups, 1e-5, shift)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert ours.dtype == dtype
        wide = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
        normed = F.silu(F.group_norm(wide, groups, weight.double(), bias.double(), 1e-5))
        exact = F.conv2d(normed, conv.double(), padding=1)
        if summed is not None:
            exact += summed.double() + owed.double()[:, None, None]
        assert relative(ours, exact) < LIMIT[dtype]


# (b, c_in, c_out, h, w)
DOUBLED = [((2, 70, 10, 3, 5), torch.float32), ((1, 16, 96, 9, 1), torch.float32)]
if not INTERPRETED:
    DOUBLED += [((2, 1280, 1280, 32, 32), torch.float16), ((8, 640, 640, 64, 64), torch.float16)]
    DOUBLED += [((3, 640, 640, 31, 33), torch.bfloat16)]


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype"), DOUBLED, ids=str)
def test_it_is_the_convolution_behind_doubling(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from sdxl_core.ops.kernels.doubling import doubled, doubling_sums

    torch.backends.cuda.matmul.allow_tf32 = False
    b, c, c_out, height, width = shape
    sizes = ((b, c, height, width), (c_out, c, 3, 3), (c_out,))
    x, conv, bias = starmap(lambda i, size: drawn(*size, seed=i, dtype=dtype), enumerate(sizes))
    conv = conv / (9 * c) ** 0.5
    weights = torch.stack(list(doubling_weights(conv)))
    ours = doubled(torch.bmm(doubling_sums(x), weights.mT), x, bias)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    twice = x.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert relative(ours, F.conv2d(twice, conv.double(), bias.double(), padding=1)) < LIMIT[dtype]


@pytest.mark.gpu
def test_the_bits_are_the_same_at_every_run_and_beside_other_pictures() -> None:
    from sdxl_core.ops.kernels.winograd import normed_sums, outputs

    x, weight, bias = (drawn(*size, seed=1, dtype=torch.float32) for size in ((2, 64, 6, 6), (64,), (64,)))
    sums = normed_sums(x, weight, bias, 32, 1e-5)
    assert torch.equal(sums, normed_sums(x, weight, bias, 32, 1e-5))
    assert torch.equal(sums[:, 9:], normed_sums(x[1:], weight, bias, 32, 1e-5))
    assert torch.equal(outputs(sums, x)[1:], outputs(sums[:, 9:].contiguous(), x[1:]))


@pytest.mark.gpu
def test_large_maps_are_made_as_small_ones() -> None:
    """Of more than 2^31 numbers, and of more places than an axis of a grid has programs: what repeats, repeats."""
    from sdxl_core.ops.kernels.doubling import doubled, doubling_sums
    from sdxl_core.ops.kernels.winograd import normed_sums, outputs

    times, height, width = (4, 16, 6) if INTERPRETED else (130, 128, 2048)
    dtype = torch.float32 if INTERPRETED else torch.float16
    if not INTERPRETED and torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("it takes 30 GB")
    lines, weight, bias = (drawn(*size, seed=0, dtype=dtype) for size in ((height, width, 64), (64,), (64,)))
    x = lines.repeat(1, times, 1, 1).permute(0, 3, 1, 2)

    def alike_in_the_middle(made: Tensor, places: int) -> bool:
        """Whether the second and the last but one of the lines that repeat are equal, (any, places, 64)."""
        parts = made.view(-1, times, places, 64)
        return bool(parts[:, 1].any()) and torch.equal(parts[:, 1], parts[:, -2])

    sums = normed_sums(x, weight, bias, 32, 1e-5)
    assert alike_in_the_middle(sums, height // 2 * width // 2)
    out = outputs(sums, x)
    assert alike_in_the_middle(out.permute(0, 2, 3, 1), height * width)
    del sums, out
    times = 5
    x = lines.repeat(1, times, 1, 1).permute(0, 3, 1, 2)
    sums = doubling_sums(x)
    assert alike_in_the_middle(sums, height * width)
    assert alike_in_the_middle(doubled(sums, x, bias).permute(0, 2, 3, 1), 4 * height * width)
