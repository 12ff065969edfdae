"""Convolutions and group norms over a feature map that is never whole in memory, equal to the whole to rounding.

A map comes as strips: tensors (b, c, rows, w) of consecutive rows from top to bottom. A layer is a generator that keeps
the one or two rows that its next strip needs, so no row is computed twice in one walk. Only a group norm must know the
whole map: where its sums are not known yet, a walk measures them and ends there, and is then begun anew.

A generator that waits keeps whatever its variables name, and here a dozen wait at once. So strips are handed on by
`map` and by expressions, and a variable that still names one is emptied before the next `yield`.
"""

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Strips = Iterator[Tensor]
"""Consecutive (b, c, rows, w) parts of one map, top to bottom; rows may differ from strip to strip."""

Known = dict[nn.GroupNorm, tuple[Tensor, Tensor]]
"""Norms whose statistics are known, each as the factor and the summand of every channel, (b, c, 1, 1) float64."""


class Moments:
    """Mean and variance of every group of a map, gathered strip by strip (Chan, Golub, LeVeque 1979, equation 2.1).

    Sums over strips are float64, so that the result does not depend on how the map was cut.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self.count = 0

    def add(self, strip: Tensor) -> None:
        """Take in one more strip."""
        values = _wide(strip).reshape(len(strip), self._groups, -1)
        variance, mean = (part.double() for part in torch.var_mean(values, dim=2, correction=0))
        count = values.shape[2]
        if self.count == 0:
            self._mean, self._squares = torch.zeros_like(mean), torch.zeros_like(mean)
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + variance * count + delta.square() * (self.count * count / total)
        self.count = total

    def passing(self, strip: Tensor) -> Tensor:
        """Take in one more strip, and hand it on."""
        self.add(strip)
        return strip

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """What `norm` does to a map with these moments: the factor and the summand of every channel."""
        deviation = (self._squares / self.count + norm.eps).sqrt()
        repeats = norm.num_channels // self._groups
        mean, deviation = (part.repeat_interleave(repeats, dim=1) for part in (self._mean, deviation))
        factor = norm.weight.double() / deviation
        summand = norm.bias.double() - mean * factor
        return factor[..., None, None], summand[..., None, None]


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums and products of half precision are not what the whole group norm computes."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def measured(strips: Strips, norm: nn.GroupNorm, known: Known) -> Strips:
    """The same strips; once the last was taken, `known` has the statistics of `norm`, which will read this map."""
    moments = Moments(norm.num_groups)
    yield from map(moments.passing, strips)
    if moments.count:  # where an earlier norm ended the walk, there is nothing to know yet
        known[norm] = moments.affine(norm)


def activated(strips: Strips, norm: nn.GroupNorm, known: Known) -> Strips:
    """silu(norm(map)); where `known` lacks `norm`, the map is walked and measured, and nothing comes out."""
    if norm in known:
        yield from map(partial(_activate, *known[norm]), strips)
    else:
        drain(measured(strips, norm, known))


def _activate(factor: Tensor, summand: Tensor, strip: Tensor) -> Tensor:
    wide = _wide(strip)
    return F.silu(torch.addcmul(summand.to(wide), wide, factor.to(wide)), inplace=True).to(strip.dtype)


def convolved(strips: Strips, conv: nn.Conv2d, *, beyond: tuple[int, int] = (1, 1)) -> Strips:
    """The convolution of a map; strips that leave are as tall as those that enter, but for the first and the last.

    Args:
        strips: the map.
        conv: 3x3; its own padding, if it has any, is one on all sides.
        beyond: rows of zeros above and below the map; without padding of its own also columns left and right.
    """
    columns = (0, 0) if conv.padding != (0, 0) else beyond
    for rows in _windows(strips, conv.stride[0], beyond):
        yield F.conv2d(
            F.pad(rows.pop(), columns) if any(columns) else rows.pop(),
            conv.weight,
            conv.bias,
            conv.stride,
            (0, int(conv.padding[1])),
        )


def doubled(strips: Strips, conv: nn.Conv2d) -> Strips:
    """Every pixel four times, then a 3x3 convolution, in one and with 4/9 of the arithmetic.

    This is a transposed convolution of 4x4 weights and stride 2.
    """
    weight = doubled_weight(conv)
    for rows in _windows(strips, 1, (1, 1)):
        yield F.conv_transpose2d(rows.pop(), weight, conv.bias, stride=2, padding=(3, 1))


def doubled_weight(conv: nn.Conv2d) -> Tensor:
    """The 3x3 weights of a convolution after doubling as those of a transposed one of stride 2, (c, c', 4, 4).

    Of the three rows that the convolution sees two are the same one before doubling, so their weights may be added
    first; that is done in float32 at least.
    """
    return _paired(_paired(_wide(conv.weight), 2), 3).transpose(0, 1).contiguous().to(conv.weight.dtype)


def _paired(weight: Tensor, dim: int) -> Tensor:
    """Three weights along `dim` as the four of the transposed convolution of a doubled line."""
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


def _windows(strips: Strips, stride: int, beyond: tuple[int, int]) -> Iterator[list[Tensor]]:
    """The rows that a convolution of three rows takes, strip by strip; each comes alone in a list, to be taken out."""
    held: Tensor | None = None
    below = beyond[1]
    for strip in chain(strips, [None]):
        if strip is not None:
            above = strip.new_zeros(*strip.shape[:2], beyond[0], strip.shape[3]) if held is None else held
            window = [torch.cat([above, strip], dim=2)]
        elif held is not None:
            window = [F.pad(held, (0, 0, 0, below))]
        else:
            return
        del strip
        rows = (window[0].shape[2] - 3) // stride + 1
        held = window[0][:, :, rows * stride :].clone() if rows > 0 else window[0]  # a view would keep all rows
        if rows > 0:
            yield window


def regrouped(strips: Strips, strip_bytes: int) -> Strips:
    """The same map in strips of one height, the last excepted: as tall as `strip_bytes` allows, at least one row."""
    held: list[Tensor] = []
    for strip in strips:
        rows = max(1, strip_bytes // strip[:, :, :1].nbytes)
        held.append(strip)
        del strip
        while sum(part.shape[2] for part in held) >= rows:
            held = list(_joined(held).tensor_split([rows], dim=2))
            yield held.pop(0)
            held = [part for part in held if part.shape[2]]
    if held:
        yield _joined(held)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def forked(strips: Strips) -> tuple[Strips, Strips]:
    """The same map for two readers, of which the second follows the first; `itertools.tee` would keep 57 strips."""
    waiting: deque[Tensor] = deque()

    def leading(strip: Tensor) -> Tensor:
        waiting.append(strip)
        return strip

    def following() -> Strips:
        while waiting:
            yield waiting.popleft()

    return map(leading, strips), following()


def added(left: Strips, right: Strips, strip_bytes: int) -> Strips:
    """The sum of two maps of one shape, however each is cut; `left` leads."""
    return map(torch.add, regrouped(left, strip_bytes), regrouped(right, strip_bytes))


def drain(strips: Strips) -> None:
    """Walk to the end for what is measured on the way."""
    deque(strips, maxlen=0)
