"""Packed linear layers against products in float64."""

import pytest
import torch
import torch.nn.functional as F
from support_networks import randn, relative_error
from torch import Tensor

from sdxl_core.ops import onednn
from sdxl_core.ops.onednn import packed_linear, why_not

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""In bfloat16 half the distance to the next number."""


@pytest.fixture(params=ROUNDING, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    if reason := why_not(torch.device("cpu"), dtype):
        pytest.skip(reason)
    return dtype


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize(("d_in", "d_out"), [(48, 80), (640, 512), (512, 640)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_product_with_what_comes_after_it(
    d_in: int, d_out: int, with_bias: bool, dtype: torch.dtype
) -> None:
    x, other = randn(2, 9, d_in).to(dtype), randn(2, 9, d_out, seed=1).to(dtype)
    weight, bias = randn(d_out, d_in, seed=2).to(dtype), randn(d_out, seed=3).to(dtype) if with_bias else None
    wanted = exact(x, weight, bias)
    with torch.inference_mode():
        layer = packed_linear(weight, bias)
        assert relative_error(layer(x), wanted) < ROUNDING[dtype]
        assert relative_error(layer(x, factor=other), wanted * other.double()) < ROUNDING[dtype]
        assert relative_error(layer(x, added=other.clone()), wanted + other.double()) < ROUNDING[dtype]
        gate = packed_linear(weight, bias, gelu=True)
        assert relative_error(gate(x), F.gelu(wanted)) < ROUNDING[dtype]


def test_takes_rows_that_do_not_lie_one_after_the_other(dtype: torch.dtype) -> None:
    x, other = randn(512, 6).to(dtype).T, randn(640, 6, seed=1).to(dtype).T
    weight = randn(640, 512, seed=2).to(dtype)
    with torch.inference_mode():
        out = packed_linear(weight, None)(x, added=other)
    assert relative_error(out, exact(x, weight, None) + other.double()) < ROUNDING[dtype]


def test_any_number_of_rows_may_come_after_any_other() -> None:
    """To the bit as from a layer of their own, though some want another layout of the weights than most."""
    if reason := why_not(torch.device("cpu"), torch.bfloat16):
        pytest.skip(reason)
    weight = randn(640, 640).bfloat16()
    layer = packed_linear(weight, None)
    with torch.inference_mode():
        for rows in (512, 64, 96, 1, 512, 1000):
            x = randn(rows, 640, seed=rows).bfloat16()
            assert torch.equal(layer(x), packed_linear(weight, None)(x))


def test_a_layout_that_fits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not(torch.device("cpu"), torch.bfloat16):
        pytest.skip(reason)
    layer = packed_linear(randn(512, 512).bfloat16(), None)
    with torch.inference_mode():
        layer(randn(64, 512).bfloat16())
        kept = layer._weight
        monkeypatch.setattr(onednn, "_pointwise_layout", lambda *_: onednn._layout(kept))
        layer(randn(96, 512).bfloat16())
        assert layer._weight is kept
        monkeypatch.setattr(onednn, "_pointwise_layout", lambda *_: b"another")
        layer(randn(64, 512).bfloat16())
        assert layer._weight is not kept
