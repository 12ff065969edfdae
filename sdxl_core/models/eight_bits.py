"""Transformer blocks with products of eight-bit floats behind their norms: faster, and not quite the same function."""

from typing import cast

import torch
from torch import Tensor, nn

from sdxl_core.models.fused import FusedSelfAttention
from sdxl_core.models.fused_unet import FusedGEGLU, FusedTransformerBlock
from sdxl_core.models.transformer import CrossAttention
from sdxl_core.ops.fp8 import Kernels, Scaled


class EightBitLinear(nn.Module):
    """A linear layer with weights in eight bits, each row scaled for itself; half the memory of 16 bit.

    Args:
        weight: (n, k).
        bias: (n,) or None.
        kernels: that compute.
        gated: the second half of the rows is a gate, see `sdxl_core.ops.fp8.Linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels, *, gated: bool = False) -> None:
        super().__init__()
        self._multiply, self.gated, self.dtype = kernels.linear, gated, weight.dtype
        self.values, self.scale = (nn.Buffer(part) for part in kernels.prepare(weight.detach(), gated=gated))
        self.bias = bias

    def forward(self, x: Scaled) -> Tensor:
        """Map (m, k) to (m, n), or behind a gate to half of it, in the dtype that the weights had."""
        return self._multiply(x, Scaled(self.values, self.scale), self.bias, gated=self.gated, dtype=self.dtype)


class EightBitBlock(FusedTransformerBlock):
    """A block whose products behind its three norms are in eight bits: two thirds of its arithmetic.

    There the norm rounds what enters, row by row, a token for itself, and costs nothing more. Behind attention and gate
    rounding would be a pass of its own, which takes as long as eight bits save; so those products stay as they were.

    Args:
        fused: the block; it must not be used any more.
        kernels: that compute.
    """

    def __init__(self, fused: FusedTransformerBlock, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.attn1, self.attn2, self.ff = fused.attn1, fused.attn2, fused.ff
        self.norm1, self.norm2, self.norm3 = fused.norm1, fused.norm2, fused.norm3
        self.kernels, self.eight_bits = fused.kernels, kernels
        self.register_buffer("owed", fused.owed, persistent=False)
        itself: nn.Module = self.attn1
        if isinstance(itself, CrossAttention):
            itself = FusedSelfAttention(itself)
            self.attn1 = itself  # type: ignore[assignment]
        gate = self.ff.net[0]
        assert isinstance(itself, FusedSelfAttention)
        assert isinstance(gate, FusedGEGLU)
        itself.to_qkv = EightBitLinear(itself.to_qkv.weight, None, kernels)  # type: ignore[assignment]
        self.attn2.to_q = EightBitLinear(self.attn2.to_q.weight, None, kernels)  # type: ignore[assignment]
        self.ff.net[0] = EightBitLinear(gate.plain_weight(), gate.proj.bias, kernels, gated=True)

    def _self_parts(self, rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        joined = self._multiplied(self.norm1, rows, 0, cast(FusedSelfAttention, self.attn1).to_qkv)
        q, k, v = joined.view(*shape[:2], 3, self.attn1.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def _query(self, rows: Tensor) -> Tensor:
        return self._multiplied(self.norm2, rows, 1, self.attn2.to_q)

    def _gated(self, rows: Tensor) -> Tensor:
        return self._multiplied(self.norm3, rows, 2, self.ff.net[0])

    def _multiplied(self, norm: nn.LayerNorm, rows: Tensor, i: int, layer: nn.Module) -> Tensor:
        out: Tensor = layer(self.eight_bits.norm(rows, norm.weight, norm.bias, norm.eps, delta_bias=self.owed[i]))
        return out
