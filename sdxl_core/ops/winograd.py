"""3x3 convolutions by sums of inputs times sums of weights: their weights, and the whole on a CPU.

Every 2x2 outputs come from 4x4 inputs by 16 products in place of 36, F(2x2, 3x3); behind nearest-neighbour doubling
from 3x3 inputs by nine. The outputs are sums of those. Over all places and channels each product is one of matrices.

Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from sdxl_core.ops.heap import FREED
from sdxl_core.ops.onednn import packed_linear

PAYING_CHANNELS = 256
"""From so many channels on, in and out, the sums cost less than the products that they save."""

MOST_BYTES = 24 * 2**20
"""Of products that are made before they are summed: they stay in the processor's caches, and the C library asks the
system anew for what is larger than 32 MiB."""


def alike(conv: nn.Conv2d) -> bool:
    """Whether F(2x2, 3x3) is of a convolution's kind."""
    return conv.kernel_size == (3, 3) and conv.stride == conv.dilation == conv.padding == (1, 1) and conv.groups == 1


def pays(conv: nn.Conv2d) -> bool:
    """Whether a `WinogradConv2d` can take the place of a convolution, and is faster."""
    return alike(conv) and min(conv.in_channels, conv.out_channels) >= PAYING_CHANNELS


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


_Sums = tuple[tuple[tuple[int, int], ...], ...]
"""Of each sum the terms, as many in all, each (index, factor)."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How two outputs of a line come from products; those of a map by each way down with each way across.

    Args:
        step: inputs from one place to the next, of which the first sees one that is outside.
        inputs: each product's, among those that a place sees.
        weights: (c_out, c_in, 3, 3) -> those of all products, row by row.
        outputs: either output's products.
        brings_bias: the product that counts once in both outputs.
    """

    step: int
    inputs: _Sums
    weights: Callable[[Tensor], Iterator[Tensor]]
    outputs: _Sums
    brings_bias: int


PLAIN = Scheme(
    step=2,
    inputs=(((0, 1), (2, -1)), ((1, 1), (2, 1)), ((2, 1), (1, -1)), ((1, 1), (3, -1))),
    weights=summed_weights,
    outputs=(((0, 1), (1, 1), (2, 1)), ((1, 1), (2, -1), (3, -1))),
    brings_bias=1,
)
DOUBLING = Scheme(
    step=1,
    inputs=(((1, 1), (1, 0)), ((0, 1), (1, -1)), ((2, 1), (1, -1))),
    weights=doubling_weights,
    outputs=(((0, 1), (1, 1)), ((0, 1), (2, 1))),
    brings_bias=0,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What sums are of.

    Args:
        rows: (sums, terms) of a matrix, int32.
        factors: (sums, terms), how often each counts.
    """

    rows: Tensor
    factors: Tensor


class Lookup:
    """Sums of rows of a matrix.

    Args:
        terms: of each.
        dtype: of the matrix.
    """

    def __init__(self, terms: Terms, dtype: torch.dtype) -> None:
        self.rows, self.factors = terms.rows.flatten(), terms.factors.flatten().to(dtype)
        self.count, each = terms.rows.shape
        self._starts = torch.arange(0, self.count * each, each, dtype=torch.int32)

    def sums(self, matrix: Tensor) -> Tensor:
        """Map (rows, c) to (sums, c), in float32 until it is rounded once."""
        # What `F.embedding_bag` comes to, which counts the starts at each call.
        return torch.embedding_bag(matrix, self.rows, self._starts, per_sample_weights=self.factors)[0]


class WinogradConv2d(nn.Module):
    """What a 3x3 convolution gives, to rounding, of maps with channels last; (b, c_in, h, w) -> (b, c_out, h, w).

    Its weights take 16/9 of the memory of the plain ones. In bfloat16 it errs 1.9 times as much as a plain one, since
    sums of inputs, sums of weights and products are rounded too, and 2.5 times behind doubling if neighbours have
    nothing in common; in float32 less, for it adds fewer numbers up.

    Args:
        conv: 3x3, padded by one.
        scheme: `DOUBLING` for the same behind nearest-neighbour doubling, (b, c_out, 2 h, 2 w), whose weights take as
            much memory as the plain ones.
    """

    def __init__(self, conv: nn.Conv2d, scheme: Scheme = PLAIN) -> None:
        super().__init__()
        bias = None if conv.bias is None else conv.bias.detach()
        with_bias = scheme.brings_bias * (len(scheme.inputs) + 1)
        self.products = nn.ModuleList(
            packed_linear(weight, bias if i == with_bias else None)
            for i, weight in enumerate(scheme.weights(conv.weight.detach()))
        )
        FREED.add(conv.weight.nbytes)
        self.channels, self.scheme = conv.out_channels, scheme

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        b, channels, height, width = x.shape
        down, across = (-(-size // self.scheme.step) for size in (height, width))
        lines = max(1, MOST_BYTES // (len(self.products) * across * self.channels * x.itemsize))
        seen = x.permute(0, 2, 3, 1).reshape(-1, channels)
        bands = [self._band(seen, *band) for band in _bands(self.scheme, b, height, width, lines, x.dtype)]
        out = bands[0] if len(bands) == 1 else torch.cat(bands)
        times = 2 // self.scheme.step
        out = out.view(b, 2 * down, 2 * across, self.channels)[:, : times * height, : times * width]
        return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _band(self, seen: Tensor, inputs: list[Lookup], outputs: Lookup) -> Tensor:
        """The outputs (pixels, c_out) of some lines of places, in order."""
        products = seen.new_empty(len(inputs), inputs[0].count, self.channels)
        for made, product, lookup in zip(products, self.products, inputs, strict=True):
            made.copy_(product(lookup.sums(seen)))
        return outputs.sums(products.flatten(0, 1))


@lru_cache(maxsize=16)  # a network has some sizes of maps, at each of which many layers want the same
def _bands(
    scheme: Scheme, b: int, height: int, width: int, lines: int, dtype: torch.dtype
) -> list[tuple[list[Lookup], Lookup]]:
    """Of so many lines of places at a time each product's inputs and each output's products.

    Inputs are among the pixels of maps (b, h, w), products among those of the band, all places of one first.
    """
    down, across = (-(-size // scheme.step) for size in (height, width))
    maps = torch.arange(b, dtype=torch.int32) * (height * width)
    ways = _line_inputs(scheme, height, apart=width), _line_inputs(scheme, width, apart=1)
    inputs = [_crossed(maps, line, column) for line in ways[0] for column in ways[1]]
    bands = []
    for first in range(0, b * down, lines):
        part = slice(first * across, (first + lines) * across)
        places = len(inputs[0].rows[part])
        line = _line_outputs(scheme, places // across, products_apart=len(ways[1]) * places, places_apart=across)
        column = _line_outputs(scheme, across, products_apart=places, places_apart=1)
        outputs = Lookup(_crossed(torch.zeros(1, dtype=torch.int32), line, column), dtype)
        bands.append(([Lookup(Terms(terms.rows[part], terms.factors[part]), dtype) for terms in inputs], outputs))
    return bands


def _line_inputs(scheme: Scheme, size: int, *, apart: int) -> list[Terms]:
    places = torch.arange(0, size, scheme.step, dtype=torch.int32)[:, None] - 1
    found = []
    for terms in torch.tensor(scheme.inputs, dtype=torch.int32):
        seen = places + terms[:, 0]
        inside = (seen >= 0) * (seen < size)  # others count zero times
        found.append(Terms(seen.clamp(0, size - 1) * apart, terms[:, 1] * inside))
    return found


def _line_outputs(scheme: Scheme, places: int, *, products_apart: int, places_apart: int) -> Terms:
    outputs = torch.arange(2 * places, dtype=torch.int32)
    terms = torch.tensor(scheme.outputs, dtype=torch.int32)[outputs % 2]
    return Terms(terms[..., 0] * products_apart + outputs[:, None] // 2 * places_apart, terms[..., 1])


def _crossed(maps: Tensor, lines: Terms, columns: Terms) -> Terms:
    """In maps that start at these rows: every line with every column, and every term with every term."""
    rows = maps[:, None, None, None, None] + lines.rows[:, None, :, None] + columns.rows[:, None]
    factors = (lines.factors[:, None, :, None] * columns.factors[:, None]).expand_as(rows)
    return Terms(rows.flatten(3).flatten(0, 2), factors.flatten(3).flatten(0, 2))
