"""Convolutions by fewer multiplications against PyTorch's own in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support_networks import randn, relative_error
from torch import Tensor, nn

from sdxl_core.ops import winograd
from sdxl_core.ops.winograd import DOUBLING, PLAIN, Scheme, WinogradConv2d, pays


def convolution(c_in: int, c_out: int, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)
    with torch.no_grad():
        for i, parameter in enumerate(conv.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=i))
    return conv.to(dtype).requires_grad_(False)


def exact(conv: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, padding=1)


def maps(*shape: int, seed: int = 7) -> Tensor:
    return randn(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("most", [1, 2**15, 2**24])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scheme", "before"), [(PLAIN, same), (DOUBLING, doubled)])
def test_equals_the_plain_convolution_at_every_size(
    scheme: Scheme, before: Callable[[Tensor], Tensor], bias: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "MOST_BYTES", most)
    conv = convolution(24, 40, bias=bias)
    fast = WinogradConv2d(conv, scheme)
    for b, height, width in ((2, 8, 8), (1, 1, 1), (2, 2, 1), (1, 5, 6), (3, 7, 9), (2, 8, 8)):
        x = maps(b, 24, height, width)
        with torch.inference_mode():
            out = fast(x)
        wanted = exact(conv, before(x))
        assert out.shape == wanted.shape
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(out, wanted) < 5e-7


def test_takes_any_layout() -> None:
    conv, x = convolution(16, 16), randn(2, 16, 6, 4)
    with torch.inference_mode():
        fast = WinogradConv2d(conv)
        assert torch.equal(fast(x), fast(x.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize(("scheme", "before", "twice"), [(PLAIN, same, 2.2), (DOUBLING, doubled, 2.7)])
def test_float32_errs_no_more_and_bfloat16_twice_as_much_as_the_plain_convolution(
    scheme: Scheme, before: Callable[[Tensor], Tensor], twice: float
) -> None:
    for dtype, worse in ((torch.float32, 1.0), (torch.bfloat16, twice)):
        conv, x = convolution(256, 64, dtype=dtype), maps(2, 256, 8, 8).to(dtype)
        with torch.inference_mode():
            plain, fast = conv(before(x)), WinogradConv2d(conv, scheme)(x)
        assert fast.dtype is dtype
        assert relative_error(fast, exact(conv, before(x))) < worse * relative_error(plain, exact(conv, before(x)))


@pytest.mark.parametrize("scheme", [PLAIN, DOUBLING])
def test_sums_and_products_are_at_most_four_times_as_large(scheme: Scheme) -> None:
    """Than the largest input, and than that times the sum of all weights without their signs."""
    sums = [sum(abs(factor) for _, factor in terms) for terms in scheme.inputs]
    inputs = torch.tensor([down * across for down in sums for across in sums])
    assert inputs.max() == 4
    one_each = torch.eye(9).view(9, 1, 3, 3)  # a sum of weights is linear in them
    weights = torch.stack([weight.abs().amax() for weight in scheme.weights(one_each)])
    assert (inputs * weights).max() == 4


@pytest.mark.parametrize(
    ("conv", "gains"),
    [
        (nn.Conv2d(256, 320, 3, padding=1), True),
        (nn.Conv2d(255, 320, 3, padding=1), False),
        (nn.Conv2d(320, 4, 3, padding=1), False),
        (nn.Conv2d(256, 256, 3), False),
        (nn.Conv2d(256, 256, 1), False),
        (nn.Conv2d(256, 256, 3, padding=1, stride=2), False),
        (nn.Conv2d(256, 256, 3, padding=1, dilation=2), False),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), False),
    ],
)
def test_pays_for_wide_plain_convolutions_alone(conv: nn.Conv2d, gains: bool) -> None:
    assert pays(conv) is gains
