"""Transformer blocks whose matrix products are of eight-bit floats: twice the arithmetic a second, and not the same."""

from torch import Tensor, nn

from sdxl_core.models.fused import FusedSelfAttention
from sdxl_core.models.fused_unet import FusedGEGLU, FusedTransformerBlock
from sdxl_core.models.transformer import AttendMap, CrossAttention
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

    def forward(self, x: Scaled, residual: Tensor | None = None) -> Tensor:
        """Map (m, k) to (m, n), or behind a gate to half of it, in the dtype that the weights had."""
        weight = Scaled(self.values, self.scale)
        return self._multiply(x, weight, self.bias, residual=residual, gated=self.gated, dtype=self.dtype)


class EightBitBlock(nn.Module):
    """A transformer block in eight bits; what goes from block to block, attention and all sums stay as they were.

    Keys and values of the words do too: they are made once a prompt. What enters a product is rounded row by row, a
    token for itself: by the norm before it, or by a pass of its own after attention and gate.

    Args:
        fused: the block; it must not be used any more.
        kernels: that compute.

    Attributes:
        owed: (4, d), as `FusedTransformerBlock` has it.
    """

    owed: Tensor

    def __init__(self, fused: FusedTransformerBlock, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        itself, words, (gate, _, last) = fused.attn1, fused.attn2, fused.ff.net
        if isinstance(itself, CrossAttention):
            itself = FusedSelfAttention(itself)  # type: ignore[assignment]
        assert isinstance(itself, FusedSelfAttention)
        assert isinstance(gate, FusedGEGLU)
        self.heads, self.attention, self.words_attention = itself.heads, itself.attention, words.attention
        self.norm1, self.norm2, self.norm3 = fused.norm1, fused.norm2, fused.norm3
        self.to_qkv, self.to_out = self._in_eight_bits(itself.to_qkv), self._in_eight_bits(itself.to_out[0], owed=True)
        self.to_q, self.to_k, self.to_v = self._in_eight_bits(words.to_q), words.to_k, words.to_v
        self.words_out = self._in_eight_bits(words.to_out[0], owed=True)
        self.inner = EightBitLinear(gate.plain_weight(), gate.proj.bias, kernels, gated=True)
        self.outer = self._in_eight_bits(last, owed=True)
        self.register_buffer("owed", fused.owed, persistent=False)

    def _in_eight_bits(self, layer: nn.Module, *, owed: bool = False) -> EightBitLinear:
        assert isinstance(layer, nn.Linear)
        return EightBitLinear(layer.weight, None if owed else layer.bias, self._kernels)

    def forward(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """Map (b, n, d) to the same, as `FusedTransformerBlock`."""
        b, n, d = x.shape
        rows = x.reshape(-1, d)
        q, k, v = self.to_qkv(self._normed(self.norm1, rows, 0)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = self.attention(q, k, v) if attend is None else attend(self.attention, q, k, v)
        rows = self.to_out(self._rounded(attended), rows)

        q = self.to_q(self._normed(self.norm2, rows, 1)).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = (y.view(*y.shape[:2], self.heads, -1).transpose(1, 2) for y in (self.to_k(context), self.to_v(context)))
        rows = self.words_out(self._rounded(self.words_attention(q, k, v)), rows)

        inner = self.inner(self._normed(self.norm3, rows, 2))
        out: Tensor = self.outer(self._kernels.quantise(inner), rows)
        return out.view(b, n, d)

    def _normed(self, norm: nn.LayerNorm, rows: Tensor, i: int) -> Scaled:
        return self._kernels.norm(rows, norm.weight, norm.bias, norm.eps, delta_bias=self.owed[i])

    def _rounded(self, attended: Tensor) -> Scaled:
        """(b, heads, n, d / heads) as rows (b n, d)."""
        return self._kernels.quantise(attended.transpose(1, 2).flatten(2).flatten(0, 1))
