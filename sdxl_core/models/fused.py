"""Layers that take the place of plain ones in a network that is not trained any more: the same function, less work."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from sdxl_core.models import autoencoder, unet
from sdxl_core.models.transformer import AttendMap, CrossAttention, TransformerBlock
from sdxl_core.ops.onednn import packed_linear

_SMALL_MAP = 2**17
"""Values of a map up to which turning it takes less than a norm of it with channels last."""


class FusedSelfAttention(nn.Module):
    """Self-attention with one matrix product for queries, keys and values.

    Args:
        plain: the layer, whose context is as wide as its input.
    """

    def __init__(self, plain: CrossAttention) -> None:
        super().__init__()
        self.heads, self.attention, self.to_out = plain.heads, plain.attention, plain.to_out
        weight = torch.cat([plain.to_q.weight, plain.to_k.weight, plain.to_v.weight]).detach()
        with torch.device("meta"):
            self.to_qkv = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.to_qkv.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """Map (b, n, d) to the same, as `CrossAttention` with itself for a context."""
        out: Tensor = self.to_out(self.attended(x, context, attend))
        return out

    def attended(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:
        """What `to_out` is given, (b, n, d)."""
        q, k, v = self.to_qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        attended = self.attention(q, k, v) if attend is None else attend(self.attention, q, k, v)
        return attended.transpose(1, 2).flatten(2)


class Remembered(nn.Module):
    """A layer that is run once for each tensor, and gives the same answer again as long as that tensor lives.

    For what stays the same from step to step; nobody may write into the answer, nor into the tensor without `refresh`.

    Args:
        layer: one tensor in, one out.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._answers = WeakTensorKeyDictionary()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        answer: Tensor | None = self._answers.get(x)  # type: ignore[no-untyped-call]
        if answer is None:
            answer = self._answers[x] = self.layer(x)
        return answer

    def refresh(self, x: Tensor) -> None:
        """Run the layer again on a tensor that was written into after all; the answer, if any, keeps its place."""
        answer: Tensor | None = self._answers.get(x)  # type: ignore[no-untyped-call]
        if answer is not None:
            answer.copy_(self.layer(x))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As every module's, which `to` and the like come to: answers stay neither behind nor as they were."""
        self._answers.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class TextPart(nn.Module):
    """The keys or the values of one layer among those of all, which one product makes for a text.

    Args:
        joined: the product, of what is remembered.
        start: first column.
        width: columns.
    """

    def __init__(self, joined: Remembered, start: int, width: int) -> None:
        super().__init__()
        self.joined, self.start, self.width = joined, start, width

    def forward(self, context: Tensor) -> Tensor:
        """Map (b, m, context_dim) to (b, m, d)."""
        answer: Tensor = self.joined(context)
        return answer.narrow(-1, self.start, self.width)


def join_text(layers: Sequence[CrossAttention]) -> None:
    """Have the keys and values of all layers made by one matrix product, once for each text.

    Args:
        layers: plain ones, which share a context.
    """
    plain = [linear for layer in layers for linear in (layer.to_k, layer.to_v)]
    weight = torch.cat([linear.weight.detach() for linear in plain])
    with torch.device("meta"):
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    joined.weight = nn.Parameter(weight, requires_grad=False)
    remembered, start = Remembered(joined), 0
    for layer in layers:
        width = layer.to_k.out_features
        layer.to_k = TextPart(remembered, start, width)  # type: ignore[assignment]
        layer.to_v = TextPart(remembered, start + width, width)  # type: ignore[assignment]
        start += 2 * width


class PackedGEGLU(nn.Module):
    """GEGLU as two packed linear layers: the gate with its GELU, and the value times the gate.

    Args:
        proj: value above gate.
    """

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        (value, gate), biases = proj.weight.chunk(2), proj.bias.chunk(2)
        self.value, self.gate = packed_linear(value, biases[0]), packed_linear(gate, biases[1], gelu=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.value(x, factor=self.gate(x))
        return out


class PackedTransformerBlock(TransformerBlock):
    """A block whose residuals are added by its packed layers, before they round; its input may be written over.

    Args:
        plain: the block; its linear layers are packed afterwards.
    """

    def __init__(self, plain: TransformerBlock) -> None:
        nn.Module.__init__(self)
        self.attn1, self.attn2, self.ff = plain.attn1, plain.attn2, plain.ff
        self.norm1, self.norm2, self.norm3 = plain.norm1, plain.norm2, plain.norm3

    def forward(self, x: Tensor, context: Tensor, attend: AttendMap | None = None) -> Tensor:  # noqa: D102
        h = self.norm1(x)
        x = self.told(self.attn1.to_out[0](self.attn1.attended(h, h, attend), added=x), context)
        widen, _, narrow = self.ff.net
        out: Tensor = narrow(widen(self.norm3(x)), added=x)
        return out

    def asked(self, x: Tensor, context: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.attn2.to_out[0](self.attn2.attended(self.norm2(x), context), added=x)
        return out


class SmallMapNorm(nn.GroupNorm):
    """A norm on a CPU that puts each channel of a small map in 16 bit together for the while.

    Packed convolutions leave the channels last, where PyTorch's kernel takes up to 20 times as long for few values.

    Args:
        plain: the norm.
    """

    def __init__(self, plain: nn.GroupNorm) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels, self.eps = plain.num_groups, plain.num_channels, plain.eps
        self.affine, self.weight, self.bias = plain.affine, plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.itemsize > 2 or x.numel() > _SMALL_MAP:
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class Phases(nn.ModuleList):
    """Nearest-neighbour doubling and a 3x3 convolution as four 2x2 convolutions, with 4/9 of the arithmetic.

    Of the three rows (columns) that the convolution sees after doubling two are the same one, so their weights are
    added first, in float32: each parity of the result's rows and columns is a convolution of its own.

    Args:
        conv: 3x3, padded by one.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        wide = conv.weight.detach().float()
        super().__init__(
            _phase_conv(conv, paired(paired(wide, row, 2), column, 3)) for row in (0, 1) for column in (0, 1)
        )
        self.channels = conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c', 2 h, 2 w)."""
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        out = torch.empty(
            (len(x), self.channels, 2 * height, 2 * width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for i, phase in enumerate(self):
            row, column = divmod(i, 2)
            seen = padded[:, :, row : row + height + 1, column : column + width + 1]
            out[:, :, row::2, column::2] = phase(seen)
        return out


class PhaseUpsample(unet.Upsample):
    """The UNet's upsampling by `Phases`; the plain weights stay for sizes that are not the double.

    Args:
        plain: the layer.
    """

    def __init__(self, plain: unet.Upsample) -> None:
        nn.Module.__init__(self)
        self.conv, self.phases = plain.conv, Phases(plain.conv)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Map (b, c, h, w) to (b, c, *size)."""
        doubled = tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
        out: Tensor = self.phases(x) if doubled else super().forward(x, size)
        return out


class DecoderPhaseUpsample(autoencoder.Upsample):
    """The decoder's upsampling by `Phases`; the plain weights stay for decoding in pieces.

    Args:
        plain: the layer.
    """

    def __init__(self, plain: autoencoder.Upsample) -> None:
        nn.Module.__init__(self)
        self.conv, self.phases = plain.conv, Phases(plain.conv)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.phases(x)
        return out


def _phase_conv(plain: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    with torch.device("meta"):
        conv = nn.Conv2d(plain.in_channels, plain.out_channels, 2)
    # `to` keeps the layout that the plain weights have.
    conv.weight = nn.Parameter(torch.empty_like(weight, dtype=plain.weight.dtype).copy_(weight), requires_grad=False)
    conv.bias = plain.bias
    return conv


def paired(weight: Tensor, parity: int, dim: int) -> Tensor:
    """Three weights along `dim` as the two of the even (0) or odd (1) lines of the doubled map."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third] if parity == 0 else [first + second, third], dim)
