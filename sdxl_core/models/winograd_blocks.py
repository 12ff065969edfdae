"""The UNet's convolutions for a GPU, made of Winograd's products: 4/9 of their multiplications, behind doubling 1/4.

In 16 bit sums and products are rounded, and have to be in range. A sum is up to four times as large as the largest
number that the convolution sees: behind a norm and SiLU, or for doubling of the map as it is. A product is up to four
times as large as the plain result could be if nothing cancelled. So float16 may overflow from 16376 on, where a plain
convolution may from 65504 on; such a latent is not finite, and told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sdxl_core.models.fused_unet import DoublingUpsample, FusedResBlock
from sdxl_core.models.unet import UNet
from sdxl_core.ops.layers import replace_layers
from sdxl_core.ops.winograd import alike, doubling_weights, summed_weights

PAYING_CHANNELS = 320
"""From so many channels on, in and out, on a Hopper GPU; convolutions of fewer were not timed."""

MOST_BYTES = 2**31
"""Of sums of inputs, and of products, for some images at a time: eight rows of 1024x1024 need half of that."""


class NormedSums(Protocol):
    """The sums of inputs behind a norm and SiLU; see `sdxl_core.ops.kernels.winograd.normed_sums`."""

    def __call__(  # noqa: D102
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, shift: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class WinogradKernels:
    """What stands around the products.

    Args:
        normed_sums: of a map, those of its norm and SiLU.
        outputs: (products, x, added, bias) -> the map of x's size; see `sdxl_core.ops.kernels.winograd.outputs`.
        doubling_sums: of a map; see `sdxl_core.ops.kernels.doubling.doubling_sums`.
        doubled: (products, x, bias) -> the map of double the size; see there.
    """

    normed_sums: NormedSums
    outputs: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
    doubling_sums: Callable[[Tensor], Tensor]
    doubled: Callable[[Tensor, Tensor, Tensor], Tensor]

    def convolved(
        self,
        norm: nn.GroupNorm,
        conv: "SummedConv",
        x: Tensor,
        *,
        shift: Tensor | None = None,
        added: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """What a convolution without its bias makes of SiLU(norm(x + shift)), plus `added` and a bias.

        Each of the maps and `shift` (b, c) has as many rows.
        """

        def made(images: slice) -> Tensor:
            some, theirs, beside = (part if part is None else part[images] for part in (x, shift, added))
            assert some is not None
            sums = self.normed_sums(some, norm.weight, norm.bias, norm.num_groups, norm.eps, shift=theirs)
            return self.outputs(torch.bmm(sums, conv.weight.mT), some, beside, bias)

        return _some_at_a_time(made, x, conv.weight, a_pixel=4)


class SummedConv(nn.Module):
    """The weights of a convolution as those of 16 products, 16/9 of the memory.

    Args:
        plain: 3x3, padded by one.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        weight = torch.stack(list(summed_weights(plain.weight.detach())))
        self.weight = nn.Parameter(weight, requires_grad=False)


class WinogradResBlock(FusedResBlock):
    """A block whose convolutions that gain by it are made of 16 products, each sum around them in a pass that is there.

    Args:
        fused: the block; it must not be used any more.
        kernels: what stands around the products.
    """

    def __init__(self, fused: FusedResBlock, kernels: WinogradKernels) -> None:
        nn.Module.__init__(self)
        self.in_layers, self.emb_layers, self.out_layers = fused.in_layers, fused.emb_layers, fused.out_layers
        self.skip_connection, self.kernels, self.shift = fused.skip_connection, fused.kernels, fused.shift
        self.register_buffer("bias", fused.bias, persistent=False)
        self.winograd = kernels
        for layers, i in ((self.in_layers, 2), (self.out_layers, 3)):
            conv = layers[i]
            if isinstance(conv, nn.Conv2d) and pays(conv):
                layers[i] = SummedConv(conv)

    def _first(self, x: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        if not isinstance(conv, SummedConv):
            return super()._first(x)
        assert isinstance(norm, nn.GroupNorm)
        return self.winograd.convolved(norm, conv, x)

    def _second(self, x: Tensor, h: Tensor, shift: Tensor) -> Tensor:
        norm, *_, conv = self.out_layers
        if not isinstance(conv, SummedConv):
            return super()._second(x, h, shift)
        assert isinstance(norm, nn.GroupNorm)
        return self.winograd.convolved(norm, conv, h, shift=shift, added=x, bias=self.bias)


class SummedDoubling(nn.Module):
    """Doubling and the convolution after it as nine products, in place of the sixteen of four phases.

    Args:
        plain: the convolution.
        kernels: what stands around the products.
    """

    def __init__(self, plain: nn.Conv2d, kernels: WinogradKernels) -> None:
        super().__init__()
        weight = torch.stack(list(doubling_weights(plain.weight.detach())))
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), plain.bias
        self.winograd = kernels

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c', 2 h, 2 w)."""
        bias = self.bias
        assert bias is not None

        def made(images: slice) -> Tensor:
            products = torch.bmm(self.winograd.doubling_sums(x[images]), self.weight.mT)
            return self.winograd.doubled(products, x[images], bias)

        return _some_at_a_time(made, x, self.weight, a_pixel=9)


def _some_at_a_time(made: Callable[[slice], Tensor], x: Tensor, weight: Tensor, *, a_pixel: int) -> Tensor:
    """What is made of maps x, of so few images at a time, evenly, that their sums and products stay in `MOST_BYTES`.

    Args:
        made: of some images.
        x: (b, c, h, w).
        weight: (products, c', c).
        a_pixel: sums of each channel for a pixel of x.
    """
    images, _, height, width = x.shape
    fitting = max(1, MOST_BYTES // (height * width * a_pixel * max(weight.shape[1:]) * x.itemsize))
    if images <= fitting:
        return made(slice(None))
    count = -(-images // -(-images // fitting))
    whole = torch.cat([made(slice(first, first + count)) for first in range(0, images, count)])
    return whole.contiguous(memory_format=torch.channels_last)


def pays(conv: nn.Conv2d) -> bool:
    """Whether 16 products are faster."""
    return alike(conv) and min(conv.in_channels, conv.out_channels) >= PAYING_CHANNELS


def gains_by_sums(network: nn.Module) -> bool:
    """Whether `sum_convolutions` changes anything."""
    blocks = (layer for layer in network.modules() if isinstance(layer, FusedResBlock))
    return any(isinstance(conv, nn.Conv2d) and pays(conv) for block in blocks for conv in block.modules())


def sum_convolutions(network: UNet, kernels: WinogradKernels) -> None:
    """Have the convolutions of fused blocks, and those behind doubling, that gain by it made of Winograd's products."""

    def replacement(layer: nn.Module) -> nn.Module | None:
        match layer:
            case FusedResBlock():
                return WinogradResBlock(layer, kernels)
            case DoublingUpsample() if pays(layer.conv):
                layer.doubled = SummedDoubling(layer.conv, kernels)  # type: ignore[assignment]
                return layer
        return None

    replace_layers(network, replacement)
