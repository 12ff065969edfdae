"""Transformer blocks in eight bits against plain ones: what is rounded, and that nothing else is different."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support_kernels import add, gated, group_norm, interleave, join, layer_norm
from support_networks import randn, randomized
from torch import Tensor

from sdxl_core.models.eight_bits import EightBitBlock
from sdxl_core.models.fused import FusedSelfAttention, Remembered
from sdxl_core.models.fused_transformer import FusedSpatialTransformer, FusedTransformerBlock
from sdxl_core.models.network_kernels import NetworkKernels, added_in_place
from sdxl_core.models.transformer import AttendMap, SpatialTransformer, TransformerBlock
from sdxl_core.ops.attention import Attention, sdpa
from sdxl_core.ops.fp8 import FP8, WRITTEN_OUT, Kernels

X, CONTEXT = randn(2, 15, 64, seed=1), randn(2, 7, 48, seed=2)


NETWORK_KERNELS = NetworkKernels(group_norm, add, interleave, layer_norm, gated, added_in_place, join)


OWED = randn(64, seed=3)
"""What x lacks when it comes."""


@pytest.fixture
def plain() -> TransformerBlock:
    return randomized(TransformerBlock(64, 48, 4, sdpa)).requires_grad_(False)


def in_eight_bits(plain: TransformerBlock, kernels: Kernels) -> EightBitBlock:
    return EightBitBlock(FusedTransformerBlock(copy.deepcopy(plain), NETWORK_KERNELS, OWED), kernels)


def whole(block: EightBitBlock, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
    """With nothing owed before and after."""
    return block(x - OWED.to(x.dtype), context, attend) + block.owed[3].to(x.dtype)


@pytest.fixture
def not_rounded(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """With these a block has the order of a block in eight bits, scales too, in float32."""
    monkeypatch.setattr("sdxl_core.ops.fp8.quantised", lambda x, factor: x.float() * factor)
    return WRITTEN_OUT


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def swapped(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(k, q, v)


@pytest.mark.parametrize("passed", [False, True])
def test_without_rounding_it_is_the_plain_block(plain: TransformerBlock, not_rounded: Kernels, passed: bool) -> None:
    fast = copy.deepcopy(plain)
    if passed:
        fast.attn1 = FusedSelfAttention(fast.attn1)  # type: ignore[assignment]
        fast.attn2.to_k = Remembered(fast.attn2.to_k)  # type: ignore[assignment]
        fast.attn2.to_v = Remembered(fast.attn2.to_v)  # type: ignore[assignment]
    block = in_eight_bits(fast, not_rounded)
    with torch.inference_mode():
        for attend in (None, swapped):
            assert relative(whole(block, X, CONTEXT, attend), plain(X, CONTEXT, attend)) < 1e-6
        assert relative(plain(X, CONTEXT, swapped), plain(X, CONTEXT)) > 1e-2


def in_a_map(depth: int, kernels: Kernels | None, **where: Any) -> SpatialTransformer:
    """Blocks over a map of 64 features, plain or in eight bits."""
    layer = randomized(SpatialTransformer(64, 48, depth, 16, linear=True, attention=sdpa)).requires_grad_(False)
    layer.to(**where)
    if kernels is None:
        return layer
    fused = FusedSpatialTransformer(layer, NETWORK_KERNELS)
    blocks = fused.transformer_blocks
    fused.transformer_blocks = torch.nn.ModuleList(
        EightBitBlock(block, kernels)  # type: ignore[arg-type]
        for block in blocks
    )
    return fused


@pytest.mark.parametrize("depth", [1, 3])
def test_what_a_block_leaves_to_the_next_is_added_once(not_rounded: Kernels, depth: int) -> None:
    x = randn(2, 64, 3, 5, seed=4).contiguous(memory_format=torch.channels_last)
    plain, fast = in_a_map(depth, None), in_a_map(depth, not_rounded)
    with torch.inference_mode():
        assert relative(fast(x, CONTEXT), plain(x, CONTEXT)) < 1e-6


def test_a_woven_gate_gives_the_same(plain: TransformerBlock) -> None:
    woven = replace(NETWORK_KERNELS, woven=lambda weight: gated)
    fused = FusedTransformerBlock(copy.deepcopy(plain), woven, OWED)
    assert not torch.equal(fused.ff.net[0].proj.weight, plain.ff.net[0].proj.weight)
    with torch.inference_mode():
        ours, expected = (
            block(X.clone(), CONTEXT)
            for block in (EightBitBlock(fused, WRITTEN_OUT), in_eight_bits(plain, WRITTEN_OUT))
        )
        assert torch.equal(ours, expected)


def test_rounding_costs_hundredths_of_what_a_block_adds(plain: TransformerBlock) -> None:
    block = in_eight_bits(plain, WRITTEN_OUT)
    with torch.inference_mode():
        error = relative(whole(block, X, CONTEXT) - X, plain(X, CONTEXT) - X)
    assert 0.01 < error < 0.1


def test_a_picture_is_the_same_in_any_batch(plain: TransformerBlock) -> None:
    block = in_eight_bits(plain, WRITTEN_OUT)
    with torch.inference_mode():
        both = block(X.clone(), CONTEXT)
        for i in (0, 1):
            assert relative(block(X[i : i + 1].clone(), CONTEXT[i : i + 1]), both[i : i + 1]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_take_a_byte_and_results_keep_their_dtype(plain: TransformerBlock, dtype: torch.dtype) -> None:
    block = in_eight_bits(plain.to(dtype), WRITTEN_OUT)
    with torch.inference_mode():
        assert block(X.to(dtype), CONTEXT.to(dtype)).dtype == dtype
    stored = [buffer for buffer in block.buffers() if buffer.dtype == FP8]
    assert sum(buffer.numel() for buffer in stored) == 16 * 64 * 64  # 3 + 1 of attention, 8 + 4 after it
    kept = sum(parameter.numel() for parameter in block.parameters())
    assert kept == 2 * 48 * 64 + (1 + 1) * 64 * 64 + 2 * 64  # keys and values of the words, what adds to x


@pytest.mark.gpu
def test_kernels_of_a_gpu_give_what_is_written_out() -> None:
    from sdxl_core.ops.kernels.eight_bits import TRITON

    plain = randomized(TransformerBlock(1280, 2048, 20, sdpa)).requires_grad_(False).to("cuda", torch.float16)
    x, context = (y.to("cuda", torch.float16) for y in (randn(2, 1024, 1280), randn(2, 77, 2048)))
    nothing = torch.zeros(1280, device="cuda")

    def added(kernels: Kernels) -> Tensor:
        block = EightBitBlock(FusedTransformerBlock(copy.deepcopy(plain), NETWORK_KERNELS, nothing), kernels)
        return block(x.clone(), context) + block.owed[3] - x

    with torch.inference_mode():
        ours, expected = added(TRITON), added(WRITTEN_OUT)
        exact = plain.float()(x.float(), context.float()) - x
    # Sums of 14 bits differ a little, and what differs may be rounded to another neighbour, a whole step away.
    assert 0.01 < relative(expected, exact) < 0.12
    assert relative(ours, exact) < 1.05 * relative(expected, exact)
    assert relative(ours, expected) < relative(expected, exact)


@pytest.mark.gpu
def test_recorded_blocks_give_the_same_for_what_is_written_into_their_inputs() -> None:
    from sdxl_core.ops.kernels.eight_bits import TRITON

    here: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
    fast, context = in_a_map(2, TRITON, **here), CONTEXT.to(**here)
    x, other = (
        randn(2, 64, 16, 16, seed=seed).to(**here).contiguous(memory_format=torch.channels_last) for seed in (4, 5)
    )
    given = x.clone()
    with torch.inference_mode():
        expected = [fast(y, context) for y in (x, other)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fast(given, context)
        for y, wanted in zip((x, other), expected, strict=True):
            given.copy_(y)
            graph.replay()
            assert torch.equal(out, wanted)
    assert relative(expected[0], expected[1]) > 0.1
