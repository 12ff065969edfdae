"""The UNet's blocks of convolutions for a GPU: the same function with channels last, and fewer passes over memory.

Every layer takes the place of a plain one and has its parameters under the same names. Convolutions leave their biases
to the pass over their result that follows anyway.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.models import autoencoder
from sdxl_core.models.fused import PhaseUpsample, Remembered
from sdxl_core.models.fused_autoencoder import Doubling, FusedNorm, JoinedUpsample, Kernels
from sdxl_core.models.network_kernels import NetworkKernels
from sdxl_core.models.unet import ResBlock, UNet, Upsample
from sdxl_core.ops.layers import as_linear, replace_layers, wide_bias


class Shifts(nn.Module):
    """What the first convolution of every block of a UNet lacks: its bias and the embedding, by one product a call.

    The blocks' own weights become parts of one matrix.

    Args:
        blocks: all of them, plain.
    """

    def __init__(self, blocks: Sequence[ResBlock]) -> None:
        super().__init__()
        layers = [as_linear(block.emb_layers[1]) for block in blocks]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        # Two biases are rounded as one.
        biases = [wide_bias(layer) + wide_bias(block.in_layers[2]) for layer, block in zip(layers, blocks, strict=True)]
        with torch.device("meta"):
            joined = nn.Linear(weight.shape[1], weight.shape[0])
        joined.weight = nn.Parameter(weight, requires_grad=False)
        joined.bias = nn.Parameter(torch.cat(biases).to(weight.dtype), requires_grad=False)
        self.joined = Remembered(nn.Sequential(nn.SiLU(), joined))
        self.widths = [len(layer.weight) for layer in layers]
        self._layers = tuple(layers)  # theirs, and not to be found under this one's name
        self._share()

    def _share(self) -> None:
        weight = as_linear(self.joined.layer[1]).weight.detach()  # type: ignore[index]
        for layer, part in zip(self._layers, torch.split(weight, self.widths), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As every module's, after that of the blocks: each part would go to another device by itself."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share()
        return self

    def part(self, i: int, emb: Tensor) -> Tensor:
        """Of the i-th block, (b, c), under an embedding (b, emb_dim)."""
        start = sum(self.widths[:i])
        answer: Tensor = self.joined(emb)
        return answer[:, start : start + self.widths[i]]


class FusedResBlock(ResBlock):
    """A block of two convolutions and three passes beside them.

    Args:
        plain: the layer.
        kernels: what it is made of.
        shift: (b, emb_dim) -> (b, c), what its first convolution lacks.
    """

    bias: Tensor

    def __init__(self, plain: ResBlock, kernels: NetworkKernels, shift: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.in_layers, self.emb_layers, self.out_layers = plain.in_layers, plain.emb_layers, plain.out_layers
        self.skip_connection = plain.skip_connection
        self.kernels, self.shift = kernels, shift
        bias = wide_bias(plain.out_layers[3])
        if isinstance(plain.skip_connection, nn.Conv2d):
            bias = bias + wide_bias(plain.skip_connection)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # noqa: D102
        h = self._first(x)
        if isinstance(self.skip_connection, nn.Conv2d):
            x = _convolved(self.skip_connection, x)
        return self._second(x, h, self.shift(emb))

    def _first(self, x: Tensor) -> Tensor:
        """What the first convolution gives before its bias."""
        return _convolved(self.in_layers[2], self.kernels.normed(_norm(self.in_layers[0]), x))

    def _second(self, x: Tensor, h: Tensor, shift: Tensor) -> Tensor:
        """The block's result, of x behind its own connection."""
        h = self.kernels.normed(_norm(self.out_layers[0]), h, shift=shift)
        return self.kernels.add(x, _convolved(self.out_layers[3], h), self.bias)


class DoublingUpsample(Upsample):
    """Upsampling as the first stage's on a GPU; the plain weights stay for sizes that are not the double.

    Args:
        plain: the layer.
        kernels: what it is made of.
        doubling: the first stage's.
    """

    def __init__(self, plain: Upsample, kernels: Kernels, doubling: Doubling) -> None:
        nn.Module.__init__(self)
        self.conv = plain.conv
        # The first stage's layer is another one only in what it is asked for.
        self.doubled = doubling(cast(autoencoder.Upsample, plain), kernels)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Map (b, c, h, w) to (b, c, *size)."""
        doubled = tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
        out: Tensor = self.doubled(x) if doubled else super().forward(x, size)
        return out


def fuse_norms(network: UNet, kernels: NetworkKernels, doubling: Doubling = JoinedUpsample) -> None:
    """Have the blocks of convolutions, what joins their maps, the last norm and doubling by phases made of kernels.

    Args:
        network: whose doubling, where it is plain, stays plain.
        kernels: what they are made of.
        doubling: what takes the place of phases.
    """
    blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    network.shifts = Shifts(blocks)
    fused = {block: FusedResBlock(block, kernels, partial(network.shifts.part, i)) for i, block in enumerate(blocks)}

    def replacement(layer: nn.Module) -> nn.Module | None:
        match layer:
            case ResBlock():
                return fused.get(layer)
            case PhaseUpsample():
                return DoublingUpsample(layer, kernels, doubling)
        return None

    replace_layers(network, replacement)
    network.join = kernels.join
    network.out[0], network.out[1] = FusedNorm(_norm(network.out[0]), kernels), nn.Identity()


def _convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """What a convolution gives before its bias."""
    assert isinstance(conv, nn.Conv2d)
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


def _norm(layer: nn.Module) -> nn.GroupNorm:
    assert isinstance(layer, nn.GroupNorm)
    return layer
