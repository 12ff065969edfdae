"""Transformers for a GPU: the same function over the rows of a map with channels last, in fewer passes over memory.

Every layer takes the place of a plain one and has its parameters under the same names. Linear layers leave their biases
to the pass over their result that follows anyway.
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.models.fused import FusedSelfAttention
from sdxl_core.models.network_kernels import NetworkKernels
from sdxl_core.models.transformer import GEGLU, AttendMap, CrossAttention, SpatialTransformer, TransformerBlock
from sdxl_core.models.unet import UNet
from sdxl_core.ops.layers import as_linear, replace_layers, wide_bias
from sdxl_core.ops.woven import unweave, weave
from sdxl_core.types import Attend


class FusedGEGLU(GEGLU):
    """A gate made by a kernel, whose weight lies as the kernel takes it.

    Args:
        plain: the layer; its weight is woven in its place.
        kernels: what it is made of.
    """

    def __init__(self, plain: GEGLU, kernels: NetworkKernels) -> None:
        nn.Module.__init__(self)
        self.proj = plain.proj
        woven = kernels.woven(self.proj.weight)
        self.gated, self.woven = woven or kernels.gated, woven is not None
        if self.woven:
            with torch.inference_mode():
                self.proj.weight.copy_(weave(self.proj.weight))

    def plain_weight(self) -> Tensor:
        """Value above gate."""
        weight = self.proj.weight.detach()
        return unweave(weight) if self.woven else weight

    def forward(self, rows: Tensor) -> Tensor:
        """Map (m, d_in) to (m, d_out)."""
        return self.gated(rows, self.proj.weight, self.proj.bias)


class FusedTransformerBlock(TransformerBlock):
    """A block whose residuals are added by its matrix products, and whose biases are owed to x.

    What is owed is the same for all rows and known beforehand: the norms add it, and nothing writes it.

    Args:
        plain: the layer.
        kernels: what it is made of.
        owed: (d,) float32 that x lacks when it comes.

    Attributes:
        owed: (4, d), what x lacks at each of the norms, and in the end.
    """

    owed: Tensor

    def __init__(self, plain: TransformerBlock, kernels: NetworkKernels, owed: Tensor) -> None:
        nn.Module.__init__(self)
        self.attn1, self.attn2, self.ff = plain.attn1, plain.attn2, plain.ff
        self.norm1, self.norm2, self.norm3 = plain.norm1, plain.norm2, plain.norm3
        self.kernels = kernels
        last = self.attn1.to_out[0], self.attn2.to_out[0], self.ff.net[2]
        steps = torch.stack([owed, *(wide_bias(layer) for layer in last)])
        self.register_buffer("owed", steps.cumsum(0), persistent=False)
        gate = self.ff.net[0]
        assert isinstance(gate, GEGLU)
        self.ff.net[0] = FusedGEGLU(gate, kernels)

    def forward(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """Map x (b, n, d), which may be written into, to the same; all but what is `owed`."""
        x, late = self.carry(x, None, context, attend)
        return x if late is None else x.add_(late)

    def carry(
        self, x: Tensor, late: Tensor | None, context: Tensor, attend: AttendMap | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The same from block to block: what is `late` is still to be added to x, which the next one's norm does."""
        shape = x.shape
        rows = x.view(-1, shape[2])
        late = None if late is None else late.view(rows.shape)

        rows, q, k, v = self._self_parts(rows, late, shape)
        kernel = self.attn1.attention
        attended = kernel(q, k, v) if attend is None else attend(kernel, q, k, v)
        rows = self._added(rows, _joined(attended), self.attn1.to_out[0])

        if len(context):  # rows without words would only take the layer's bias, which is owed: see `told`
            self.asked(rows.view(shape)[-len(context) :], context)
        rows, late = self._fed(rows)
        return rows.view(shape), None if late is None else late.view(shape)

    def _self_parts(self, rows: Tensor, late: Tensor | None, shape: torch.Size) -> tuple[Tensor, ...]:
        """The rows with what was late, and q, k, v of them."""
        rows, normed = self._normed(self.norm1, rows, 0, late)
        return rows, *_self_parts(self.attn1, normed.view(shape))

    def asked(self, x: Tensor, context: Tensor) -> Tensor:
        """The same, written into x; all but the layer's bias."""
        rows = x.view(-1, x.shape[2])
        parts = self._query(rows).view(x.shape), self.attn2.to_k(context), self.attn2.to_v(context)
        attended = self.attn2.attention(*(_heads(part, self.attn2.heads) for part in parts))
        return self._added(rows, _joined(attended), self.attn2.to_out[0]).view(x.shape)

    def _query(self, rows: Tensor) -> Tensor:
        return F.linear(self._normed(self.norm2, rows, 1)[1], self.attn2.to_q.weight)

    def _fed(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows behind the feed-forward layers, and what is still to be added."""
        gated = self.ff.net[0](self._normed(self.norm3, rows, 2)[1])
        return self._added(rows, gated, self.ff.net[2]), None

    def _normed(self, norm: nn.LayerNorm, rows: Tensor, i: int, late: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.kernels.layer_norm(rows, norm.weight, norm.bias, norm.eps, delta=late, delta_bias=self.owed[i])

    def _added(self, rows: Tensor, h: Tensor, layer: nn.Module) -> Tensor:
        return self.kernels.added(rows, h, as_linear(layer).weight)


class FusedSpatialTransformer(SpatialTransformer):
    """Blocks over all positions of a map with channels last, whose rows are the map itself.

    Args:
        plain: the layer; where its blocks are of another kind already, they stay.
        kernels: what it is made of.

    Attributes:
        owing: the blocks are fused and owe their biases.
        bias: (c,) that the result lacks: what the blocks owe, after the last projection, and its bias.
    """

    bias: Tensor

    def __init__(self, plain: SpatialTransformer, kernels: NetworkKernels) -> None:
        nn.Module.__init__(self)
        self.linear, self.norm, self.kernels = plain.linear, plain.norm, kernels
        self.proj_in, self.proj_out = plain.proj_in, plain.proj_out
        blocks, owed = list(plain.transformer_blocks), wide_bias(plain.proj_in)
        self.owing = all(isinstance(block, TransformerBlock) for block in blocks)
        for i, block in enumerate(blocks if self.owing else ()):
            blocks[i] = FusedTransformerBlock(block, kernels, owed)  # type: ignore[arg-type]
            owed = blocks[i].owed[3]  # type: ignore[index]
        self.transformer_blocks = nn.ModuleList(blocks)
        bias = wide_bias(plain.proj_out)
        if self.owing:
            bias = plain.proj_out.weight.detach().flatten(1).to(owed.dtype) @ owed + bias
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, context: Tensor, attend: Attend | None = None) -> Tensor:  # noqa: D102
        b, c, height, width = x.shape
        attend_map = None if attend is None else partial(attend, size=(height, width))
        h = self.kernels.normed(self.norm, x, silu=False).permute(0, 2, 3, 1).reshape(b, height * width, c)
        h = F.linear(h, self.proj_in.weight.flatten(1), None if self.owing else self.proj_in.bias)
        late: Tensor | None = None
        for block in self.transformer_blocks:
            if self.owing:
                h, late = cast(FusedTransformerBlock, block).carry(h, late, context, attend_map)
            else:
                h = block(h, context, attend_map)
        h = h if late is None else h.add_(late)
        h = F.linear(h, self.proj_out.weight.flatten(1)).view(b, height, width, c)
        return self.kernels.add(x, h.permute(0, 3, 1, 2), self.bias)


def fuse_transformers(network: UNet, kernels: NetworkKernels) -> None:
    """Have the transformers made of kernels, whether their projections of q, k and v are one or three."""

    def replacement(layer: nn.Module) -> nn.Module | None:
        return FusedSpatialTransformer(layer, kernels) if isinstance(layer, SpatialTransformer) else None

    replace_layers(network, replacement)


def _self_parts(attn: nn.Module, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of h (b, n, d), each (b, heads, n, d / heads); views of one product where the layer has one."""
    if isinstance(attn, FusedSelfAttention):
        joined = F.linear(h, attn.to_qkv.weight).view(*h.shape[:2], 3, attn.heads, -1)
        q, k, v = joined.permute(2, 0, 3, 1, 4).unbind()
        return q, k, v
    assert isinstance(attn, CrossAttention)
    q, k, v = (_heads(F.linear(h, as_linear(layer).weight), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
    return q, k, v


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _joined(attended: Tensor) -> Tensor:
    """The heads of every position side by side: (b, heads, n, e) to (b n, heads e); a view of what kernels make."""
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)
