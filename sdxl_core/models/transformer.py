"""The transformer that lets pixels look at each other and at the words (Rombach et al. 2022, section 3.3)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.ops.attention import Attention
from sdxl_core.ops.layers import group_norm, zeroed
from sdxl_core.types import Attend

AttendMap = Callable[[Attention, Tensor, Tensor, Tensor], Tensor]
"""An `Attend` that knows the size of the map."""


class CrossAttention(nn.Module):
    """Multi-head attention of x (b, n, d) to a context (b, m, context_dim)."""

    def __init__(self, d: int, context_dim: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.to_q = nn.Linear(d, d, bias=False)
        self.to_k = nn.Linear(context_dim, d, bias=False)
        self.to_v = nn.Linear(context_dim, d, bias=False)
        self.to_out = nn.Sequential(nn.Linear(d, d))

    def forward(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """Map (b, n, d) to the same; `attend` is asked in the kernel's place, which it is handed."""
        out: Tensor = self.to_out(self.attended(x, context, attend))
        return out

    def attended(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """What `to_out` is given, (b, n, d)."""
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (y.view(*y.shape[:2], self.heads, -1).transpose(1, 2) for y in (q, k, v))
        attended = self.attention(q, k, v) if attend is None else attend(self.attention, q, k, v)
        return attended.transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020); both are halves of `proj`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_in, 2 * d_out)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """Four times as wide inside as outside."""

    def __init__(self, d: int) -> None:
        super().__init__()
        # The published names count a dropout between the two layers.
        self.net = nn.Sequential(GEGLU(d, 4 * d), nn.Identity(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised first and added to its input."""

    def __init__(self, d: int, context_dim: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.attn1 = CrossAttention(d, d, heads, attention)
        self.attn2 = CrossAttention(d, context_dim, heads, attention)
        self.ff = FeedForward(d)
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)
        self.norm3 = nn.LayerNorm(d)

    def forward(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """Map (b, n, d) to the same; `attend` is asked in the place of the self-attention's kernel."""
        h = self.norm1(x)
        x = self.told(x + self.attn1(h, h, attend), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out

    def told(self, x: Tensor, context: Tensor) -> Tensor:
        """Add to x (b, n, d) what it takes from a context (m, tokens, context_dim) of the last m <= b rows.

        The others' contexts are zeros, and so are keys and values of zeros, which have no bias: whatever the queries
        are, attention gives zeros and the layer behind it its bias.
        """
        blank = len(x) - len(context)
        if not blank:
            return self.asked(x, context)
        bias = self.attn2.to_out[0].bias
        assert isinstance(bias, Tensor)
        parts = [x[:blank] + bias]
        if len(context):
            parts.append(self.asked(x[blank:], context))
        return torch.cat(parts)

    def asked(self, x: Tensor, context: Tensor) -> Tensor:
        """Add to x (b, n, d) what it takes from a context (b, tokens, context_dim)."""
        out: Tensor = x + self.attn2(self.norm2(x), context)
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions of a feature map, added to it.

    Args:
        channels: features of the map, the transformer's width too.
        context_dim: features of one token of the text.
        depth: number of transformer blocks.
        head_dim: features of one head; divides `channels`.
        linear: project in and out by linear layers (SDXL) instead of 1x1 convolutions; the same mathematics,
            but the weights have another shape in the file.
        attention: the kernel.
    """

    def __init__(
        self, channels: int, context_dim: int, depth: int, head_dim: int, *, linear: bool, attention: Attention
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = group_norm(channels, 1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim, channels // head_dim, attention) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, attend: Attend | None = None) -> Tensor:
        """Map (b, c, h, w) -> (b, c, h, w) under a context, see `TransformerBlock.told`; `attend` is a `Touch`'s."""
        height, width = x.shape[2:]
        attend_map = None if attend is None else partial(attend, size=(height, width))
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # a view where x is channels_last
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context, attend_map)
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).view(x.shape)
        if not self.linear:
            h = self.proj_out(h)
        out: Tensor = x + h
        return out
