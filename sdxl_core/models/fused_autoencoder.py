"""The first stage for a GPU: the same function with channels last, and fewer passes over maps between convolutions.

Every layer takes the place of a plain one and shares its parameters, so that working in pieces goes on as before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.models.autoencoder import AttnBlock, AutoencoderKL, ResnetBlock, Upsample
from sdxl_core.models.fused import DecoderPhaseUpsample, paired
from sdxl_core.ops.attention import Attention, Softmax, in_query_chunks, sdpa, wide_scores
from sdxl_core.ops.layers import replace_layers

SCORES_BYTES = 2**27
"""Of a block of attention scores in 16 bit; at 1024x1024 of 4096 queries, enough work for all of a large GPU."""


class GroupNormKernel(Protocol):
    """Group norm of x + shift, then SiLU if wanted; see `sdxl_core.ops.kernels.norms.group_norm`."""

    def __call__(  # noqa: D102
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        silu: bool,
        shift: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is done in one pass over maps with channels last.

    Args:
        group_norm: with what comes before and after it.
        add: (x, y, bias) -> x + y + bias.
        interleave: four maps and a bias to one map; see `sdxl_core.ops.kernels.doubling.interleave`.
    """

    group_norm: GroupNormKernel
    add: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    interleave: Callable[[Tensor, Tensor], Tensor]

    def normed(self, norm: nn.GroupNorm, x: Tensor, *, silu: bool = True, shift: Tensor | None = None) -> Tensor:
        """What `norm` makes of x + shift."""
        return self.group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=silu, shift=shift)


@dataclass(frozen=True, slots=True)
class FirstStageKernels(Kernels):
    """The same, and what its attention needs.

    Args:
        softmax: of attention scores.
    """

    softmax: Softmax


class FusedResnetBlock(ResnetBlock):
    """A block whose biases are added by the next pass over the map, which is there anyway.

    Args:
        plain: the layer.
        kernels: what it is made of.
    """

    bias: Tensor

    def __init__(self, plain: ResnetBlock, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.norm1, self.conv1 = plain.norm1, plain.conv1
        self.norm2, self.conv2 = plain.norm2, plain.conv2
        self.nin_shortcut = plain.nin_shortcut
        self.kernels = kernels
        bias = _bias(plain.conv2)
        if isinstance(plain.nin_shortcut, nn.Conv2d):
            bias = bias + _bias(plain.nin_shortcut)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        normed = self.kernels.normed
        h = _unbiased(self.conv1, normed(self.norm1, x))
        h = _unbiased(self.conv2, normed(self.norm2, h, shift=self.conv1.bias))
        if isinstance(self.nin_shortcut, nn.Conv2d):
            x = _unbiased(self.nin_shortcut, x)
        return self.kernels.add(x, h, self.bias)


class FusedAttnBlock(AttnBlock):
    """Attention with one matrix product for queries, keys and values, and scores in float32, some queries at a time.

    No flash kernel takes a head as wide; another kernel than PyTorch's own choice stays.

    Args:
        plain: the layer.
        kernels: what it is made of.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, plain: AttnBlock, kernels: FirstStageKernels) -> None:
        nn.Module.__init__(self)
        self.norm, self.proj_out, self.kernels = plain.norm, plain.proj_out, kernels
        own = plain.attention is sdpa
        wide = in_query_chunks(partial(wide_scores, softmax=kernels.softmax), SCORES_BYTES)
        self.attention: Attention = wide if own else plain.attention
        layers = plain.q, plain.k, plain.v
        self.register_buffer(
            "weight", torch.cat([layer.weight.detach().flatten(1) for layer in layers]), persistent=False
        )
        self.register_buffer("bias", torch.cat([_bias(layer) for layer in layers]), persistent=False)

    def forward(self, x: Tensor, attention: Attention | None = None) -> Tensor:  # noqa: D102
        b, c, height, width = x.shape
        tokens = self.kernels.normed(self.norm, x, silu=False).permute(0, 2, 3, 1).reshape(b, height * width, c)
        qkv = F.linear(tokens, self.weight, self.bias).view(b, 1, height * width, 3, c)
        q, k, v = qkv.unbind(3)
        attended = (attention or self.attention)(q, k, v).squeeze(1)
        h = F.linear(attended, self.proj_out.weight.flatten(1)).view(b, height, width, c).permute(0, 3, 1, 2)
        return self.kernels.add(x, h, self.proj_out.bias)


class FusedNorm(nn.GroupNorm):
    """A norm and the SiLU after it.

    Args:
        plain: the norm.
        kernels: what it is made of.
    """

    def __init__(self, plain: nn.GroupNorm, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels, self.eps = plain.num_groups, plain.num_channels, plain.eps
        self.affine, self.weight, self.bias = plain.affine, plain.weight, plain.bias
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.kernels.normed(self, x)


class JoinedUpsample(Upsample):
    """Doubling and convolution as one 2x2 convolution to four maps, one for each parity of rows and columns.

    The four overlap but for a row and a column at their edges, and are then laid into each other.

    Args:
        plain: the layer.
        kernels: what lays them.
    """

    weight: Tensor

    def __init__(self, plain: Upsample, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.conv, self.kernels = plain.conv, kernels
        wide = plain.conv.weight.detach().float()
        parts = [paired(paired(wide, row, 2), column, 3) for row in (0, 1) for column in (0, 1)]
        self.register_buffer("weight", _like(plain.conv, torch.cat(parts)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.kernels.interleave(F.conv2d(x, self.weight, padding=1), _bias(self.conv))


Doubling = Callable[[Upsample, Kernels], Upsample]
"""What takes the place of doubling by phases."""


def fuse_first_stage(model: AutoencoderKL, kernels: FirstStageKernels, doubling: Doubling = JoinedUpsample) -> None:
    """Have a first stage run with channels last, its blocks, its ends and its doubling in place of the plain ones.

    Args:
        model: as loaded; a second time changes nothing. Doubling that is plain stays plain.
        kernels: what the blocks are made of.
        doubling: what takes the place of doubling by phases.
    """

    def replacement(layer: nn.Module) -> nn.Module | None:
        match layer:
            case FusedResnetBlock() | FusedAttnBlock():
                return layer
            case ResnetBlock():
                return FusedResnetBlock(layer, kernels)
            case AttnBlock():
                return FusedAttnBlock(layer, kernels)
            case DecoderPhaseUpsample():
                return doubling(layer, kernels)
        return None

    model.to(memory_format=torch.channels_last)
    replace_layers(model, replacement)
    for half in (model.encoder, model.decoder):
        if not isinstance(half.norm_out, FusedNorm):
            half.norm_out, half.act = FusedNorm(half.norm_out, kernels), nn.Identity()


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


def _unbiased(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


def _like(conv: nn.Conv2d, weight: Tensor) -> Tensor:
    """Weights in the dtype of a convolution's, with channels last."""
    return weight.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last)
