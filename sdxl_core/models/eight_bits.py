"""Transformer blocks with products of eight-bit floats: faster, and not quite the same function."""

import torch
from torch import Tensor, nn

from sdxl_core.models.fused import FusedSelfAttention
from sdxl_core.models.fused_transformer import FusedGEGLU, FusedTransformerBlock
from sdxl_core.models.transformer import CrossAttention
from sdxl_core.ops import fp8
from sdxl_core.ops.fp8 import Kernels


class EightBitNorm(nn.Module):
    """A layer norm whose rows come in eight bits, all with one scale, by which none of its numbers is too large.

    Args:
        plain: the layer.
        kernels: that compute.

    Attributes:
        scale: what the numbers are to be multiplied by.
    """

    def __init__(self, plain: nn.LayerNorm, kernels: Kernels) -> None:
        super().__init__()
        weight, bias = plain.weight.detach(), plain.bias.detach()
        power = fp8.norm_power(weight, bias)
        self.weight, self.bias, self.eps = nn.Buffer(weight * power), nn.Buffer(bias * power), plain.eps
        self._norm, self.scale = kernels.norm, 1 / power

    def forward(self, rows: Tensor, late: Tensor | None, owed: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of rows and what is late, (m, d), and the norm of it and of what is owed, (d,)."""
        return self._norm(rows, self.weight, self.bias, self.eps, delta=late, delta_bias=owed)


class EightBitLinear(nn.Module):
    """A linear layer without a bias, its weight in eight bits: half the memory of 16.

    Args:
        weight: (n, k).
        scale: what its input is to be multiplied by.
        kernels: that compute.
        dtype: of what it gives.
    """

    def __init__(self, weight: Tensor, scale: float, kernels: Kernels, dtype: torch.dtype) -> None:
        super().__init__()
        power = fp8.weight_power(weight)
        self._multiply, self.dtype = kernels.linear, dtype
        self.values = nn.Buffer(fp8.quantised(weight, power))
        # On the device, where a recorded call reads them.
        self.scale, self.weight_scale = (nn.Buffer(torch.tensor(s, device=weight.device)) for s in (scale, 1 / power))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (m, k) in eight bits to (m, n)."""
        return self._multiply(rows, self.values, self.scale, self.weight_scale, self.dtype)


class EightBitGEGLU(nn.Module):
    """GEGLU from eight bits to eight bits, each feature by a scale of its own, which is part of the weight.

    Args:
        plain: the layer.
        powers: (n,) by which the features are larger than the plain layer's.
        scale: what its input is to be multiplied by.
        kernels: that compute.
    """

    def __init__(self, plain: FusedGEGLU, powers: Tensor, scale: float, kernels: Kernels) -> None:
        super().__init__()
        (value, gate), (b, c) = (y.float().chunk(2) for y in (plain.plain_weight(), plain.proj.bias.detach()))
        value = value * powers[:, None]
        parts = [(part, fp8.weight_power(part)) for part in (value, gate)]
        self.values = nn.Buffer(kernels.arrange(torch.cat([fp8.quantised(*part) for part in parts])))
        self.bias = nn.Buffer(torch.cat([b * powers, c]))
        self._gated, (self._value_scale, self._gate_scale) = kernels.gated, (scale / power for _, power in parts)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (m, k) to (m, n)."""
        return self._gated(rows, self.values, self.bias, self._value_scale, self._gate_scale)


class EightBitBlock(FusedTransformerBlock):
    """A block whose products behind its norms and its gate are in eight bits: eight ninths of its linear layers' work.

    There the kernel that comes before rounds, and costs nothing more. Behind attention rounding would be a pass of its
    own, which takes as long as eight bits save; so those products stay as they were.

    Args:
        fused: the block; it must not be used any more.
        kernels: that compute.
    """

    def __init__(self, fused: FusedTransformerBlock, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.attn1, self.attn2, self.ff = fused.attn1, fused.attn2, fused.ff
        self.kernels = fused.kernels
        self.register_buffer("owed", fused.owed, persistent=False)
        itself: nn.Module = self.attn1
        if isinstance(itself, CrossAttention):
            itself = FusedSelfAttention(itself)
            self.attn1 = itself  # type: ignore[assignment]
        gate, second = self.ff.net[0], self.ff.net[2]
        assert isinstance(itself, FusedSelfAttention)
        assert isinstance(gate, FusedGEGLU)
        assert isinstance(second, nn.Linear)
        to_qkv, to_q, weight = (layer.weight.detach() for layer in (itself.to_qkv, self.attn2.to_q, second))
        dtype, norms = weight.dtype, (fused.norm1, fused.norm2, fused.norm3)
        before = norms[2].weight.detach(), norms[2].bias.detach()
        powers = fp8.gate_powers(gate.plain_weight(), gate.proj.bias.detach(), *before)
        first, again, last = (EightBitNorm(norm, kernels) for norm in norms)
        itself.to_qkv = EightBitLinear(to_qkv, first.scale, kernels, dtype)  # type: ignore[assignment]
        self.attn2.to_q = EightBitLinear(to_q, again.scale, kernels, dtype)  # type: ignore[assignment]
        self.ff.net[0] = EightBitGEGLU(gate, powers, last.scale, kernels)
        self.ff.net[2] = EightBitLinear(weight.float() / powers, 1.0, kernels, dtype)
        self.norm1, self.norm2, self.norm3 = first, again, last  # type: ignore[assignment]

    def _self_parts(self, rows: Tensor, late: Tensor | None, shape: torch.Size) -> tuple[Tensor, ...]:
        rows, normed = self.norm1(rows, late, self.owed[0])
        joined = self.attn1.to_qkv(normed)  # type: ignore[operator]
        q, k, v = joined.view(*shape[:2], 3, self.attn1.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        return rows, q, k, v

    def _query(self, rows: Tensor) -> Tensor:
        query: Tensor = self.attn2.to_q(self.norm2(rows, None, self.owed[1])[1])
        return query

    def _fed(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        return rows, self.ff.net[2](self.ff.net[0](self.norm3(rows, None, self.owed[2])[1]))
