"""3x3 convolutions with 4/9 of the multiplications, F(2x2, 3x3): their weights, and the whole on a CPU.

Every 2x2 outputs come from 4x4 inputs by 16 products in place of 36: sums of inputs times sums of weights, and the
outputs are sums of those. Over all places and channels each of the 16 is a matrix product.

Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sdxl_core.ops.heap import FREED
from sdxl_core.ops.onednn import PackedLinear

PAYING_CHANNELS = 256
"""From so many channels on, in and out, the sums cost less than the products that they save."""

BAND_PLACES = 512
"""Of so many places of 2x2 outputs at a time the sums are made, so that they stay in the processor's caches."""

_INPUTS = ((0, -1, 2), (1, 1, 2), (2, -1, 1), (1, -1, 3))
"""(i, sign, j): each sum of four inputs is input i plus sign times input j."""

_OUTPUTS = ((1, 1, 1, 0), (0, 1, -1, -1))
"""How often each of four products counts in either output."""


def alike(conv: nn.Conv2d) -> bool:
    """Whether F(2x2, 3x3) is of a convolution's kind."""
    return conv.kernel_size == (3, 3) and conv.stride == conv.dilation == conv.padding == (1, 1) and conv.groups == 1


def pays(conv: nn.Conv2d) -> bool:
    """Whether a `WinogradConv2d` can take the place of a convolution, and is faster."""
    return alike(conv) and min(conv.in_channels, conv.out_channels) >= PAYING_CHANNELS


class WinogradConv2d(nn.Module):
    """What a 3x3 convolution gives, to rounding, of maps with channels last; (b, c_in, h, w) -> (b, c_out, h, w).

    Its weights take 16/9 of the memory of the plain ones. In bfloat16 it errs 1.9 times as much as a plain one, since
    sums of inputs, sums of weights and products are rounded too; in float32 less, for it adds fewer numbers up.

    Args:
        conv: 3x3, padded by one.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        bias = None if conv.bias is None else conv.bias.detach()
        # The sixth product, which counts once in all four outputs, brings the bias.
        self.products = nn.ModuleList(
            PackedLinear(weight, bias if i == 5 else None)
            for i, weight in enumerate(summed_weights(conv.weight.detach()))
        )
        FREED.add(conv.weight.nbytes)
        self.channels = conv.out_channels
        counts = torch.tensor(_OUTPUTS, dtype=conv.weight.dtype)
        self._counts = torch.kron(counts, counts)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        b, _, height, width = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        seen = x.permute(0, 2, 3, 1)
        out = x.new_empty(b, rows, 2, columns, 2, self.channels)
        step = max(1, BAND_PLACES // (b * columns))
        for first in range(0, rows, step):
            self._band(seen, first, out[:, first : first + step])
        out = out.view(b, 2 * rows, 2 * columns, self.channels)[:, :height, :width]
        return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _band(self, seen: Tensor, first: int, out: Tensor) -> None:
        """Write some rows of places, from `first` on, of a map (b, h, w, c_in) to (b, n, 2, w', 2, c_out)."""
        b, n, _, columns, _, _ = out.shape
        # Sums are made in float32 and rounded once.
        wide = torch.promote_types(seen.dtype, torch.float32)
        height, width, channels = seen.shape[1:]
        window = seen.new_empty(b, 2 * n + 2, 2 * columns + 2, channels, dtype=wide)
        top, bottom = max(2 * first - 1, 0), min(2 * (first + n) + 1, height)
        above, below = top - (2 * first - 1), bottom - (2 * first - 1)
        window[:, above:below, 1 : width + 1] = seen[:, top:bottom]
        for outside in (window[:, :above], window[:, below:], window[:, :, :1], window[:, :, width + 1 :]):
            outside.zero_()

        places = b * n * columns
        products = seen.new_empty(16, places, self.channels)
        part = seen.new_empty(b, n, columns, channels)
        lines = [window[:, i : i + 2 * n - 1 : 2] for i in range(4)]
        for row, (first_line, line_sign, second_line) in enumerate(_INPUTS):
            line = torch.add(lines[first_line], lines[second_line], alpha=line_sign)
            cells = [line[:, :, i : i + 2 * columns - 1 : 2] for i in range(4)]
            for column, (first_cell, cell_sign, second_cell) in enumerate(_INPUTS):
                torch.add(cells[first_cell], cells[second_cell], alpha=cell_sign, out=part)
                products[4 * row + column] = self.products[4 * row + column](part.view(places, channels))
        sums = (self._counts @ products.view(16, -1)).view(2, 2, b, n, columns, self.channels)
        for row in (0, 1):
            for column in (0, 1):
                out[:, :, row, :, column] = sums[row, column]


def summed_weights(weight: Tensor) -> Iterator[Tensor]:
    """The weights (c_out, c_in, 3, 3) of a convolution as those of 16 products, each (c_out, c_in), row by row."""
    dtype = weight.dtype
    for line in _sums(weight.permute(2, 3, 0, 1).to(torch.promote_types(dtype, torch.float32))):
        yield from (product.to(dtype).contiguous() for product in _sums(line))


def _sums(weights: Tensor) -> Iterator[Tensor]:
    first, second, third = weights
    yield first
    outer, inner = (first + third) / 2, second / 2
    yield outer + inner
    yield outer - inner
    yield third


def doubling_weights(weight: Tensor) -> Iterator[Tensor]:
    """The weights (c_out, c_in, 3, 3) behind nearest-neighbour doubling as those of nine products, row by row.

    Along one side a pixel x between p and n becomes a p + (b + c) x and (a + b) x + c n, for weights a, b, c. These are
    (a + b + c) x + a (p - x) and (a + b + c) x + c (n - x): three products in place of four.
    """
    dtype = weight.dtype
    for line in _doubling(weight.permute(2, 3, 0, 1).to(torch.promote_types(dtype, torch.float32))):
        yield from (product.to(dtype).contiguous() for product in _doubling(line))


def _doubling(weights: Tensor) -> Iterator[Tensor]:
    first, second, third = weights
    yield first + second + third
    yield first
    yield third
