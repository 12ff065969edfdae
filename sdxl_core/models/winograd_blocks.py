"""The UNet's convolutions for a GPU, made of Winograd's products: 4/9 of their multiplications, behind doubling 1/4."""

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
        """What a convolution without its bias makes of SiLU(norm(x + shift)), plus `added` and a bias."""
        sums = self.normed_sums(x, norm.weight, norm.bias, norm.num_groups, norm.eps, shift=shift)
        return self.outputs(torch.bmm(sums, conv.weight.mT), x, added, bias)


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
        assert self.bias is not None
        products = torch.bmm(self.winograd.doubling_sums(x), self.weight.mT)
        return self.winograd.doubled(products, x, self.bias)


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
