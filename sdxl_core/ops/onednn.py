"""Linear layers and convolutions whose weights lie as oneDNN wants them, on a CPU.

PyTorch's own layers bring the weights into that layout at every call, and in float32 give linear layers to MKL instead,
which is slower on some processors. The layout depends on the size of the input, so each layer arranges its weights at
its first call; other sizes work too, with the cost of arranging them again. What is kept replaces the plain weights.

The operators are those that PyTorch's compiler calls. They have been in it since 2.1, but are no promise of it:
`why_not` tries them.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from sdxl_core.ops.heap import FREED

_ops = torch.ops.mkldnn

_INPUTS, _OUTPUTS = range(512, 4096), range(512, 8192)
"""Features in and out of linear layers in bfloat16 that are faster as 1x1 convolutions, with the same error: of fewer
what comes around a call shows, more inputs the other kernel takes in better portions, and more outputs are of many
layers at once. In float32 they gain a hundredth, and err a fifth more."""

_POINTWISE = (0, 0), (1, 1), (1, 1), 1
"""Padding, stride, dilation and groups of such a convolution."""


def packed_linear(weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> "PackedLinear":
    """What a linear layer gives, by what is fastest for its size; the arguments are those of either layer."""
    d_out, d_in = weight.shape
    convolves = weight.dtype == torch.bfloat16 and d_in in _INPUTS and d_out in _OUTPUTS
    return (PackedPointwise if convolves else PackedLinear)(weight, bias, gelu=gelu)


class PackedLinear(nn.Module):
    """What a linear layer gives, to rounding; (..., d_in) -> (..., d_out).

    Args:
        weight: (d_out, d_in).
        bias: (d_out,) or None.
        gelu: apply the exact GELU to the result, before it is rounded.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        super().__init__()
        self._weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self._after = ("gelu", "none") if gelu else ("none", "")
        self._rows = 0  # for which the weights lie right; none yet

    def forward(self, x: Tensor, *, factor: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """Map x.

        Args:
            x: (..., d_in).
            factor: (..., d_out) by which the result is multiplied before it is rounded.
            added: (..., d_out) that is added to the result before it is rounded, and may be written over; not beside
                a factor.
        """
        if not self._rows:
            size = self._weight.nbytes
            self._rows = x.numel() // x.shape[-1]
            self._weight = _ops._reorder_linear_weight(self._weight.contiguous(), self._rows)
            FREED.add(size)
        out: Tensor
        if factor is not None:
            out = _ops._linear_pointwise.binary(x, factor, self._weight, self.bias, "mul")
        elif added is not None:
            out = _ops._linear_pointwise.binary(x, added, self._weight, self.bias, "add")
        else:
            out = _ops._linear_pointwise(x, self._weight, self.bias, self._after[0], [], self._after[1])
        return out


class PackedPointwise(PackedLinear):
    """The same, of bfloat16, as a 1x1 convolution of a map whose only line has the rows for pixels."""

    def forward(self, x: Tensor, *, factor: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """As `PackedLinear`'s."""
        seen = _pixels(x)
        if seen.shape[3] != self._rows:
            self._arrange(seen.shape[3])
        how = self._weight, self.bias, *_POINTWISE
        out: Tensor
        if factor is not None:
            out = _ops._convolution_pointwise.binary(seen, _pixels(factor), *how, "mul", None, None, [], None)
        elif added is not None:
            # In place, so that one memory comes into the caches and not two.
            out = _ops._convolution_pointwise_.binary(_pixels(added), seen, *how, "add", None, None, [], None)
        else:
            out = _ops._convolution_pointwise(seen, *how, self._after[0], [], self._after[1])
        return out.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)

    def _arrange(self, rows: int) -> None:
        if not self._rows:
            size = self._weight.nbytes
            self._weight = _pointwise(self._weight.contiguous(), rows)
            FREED.add(size)
        # oneDNN itself would go from one layout to the other value by value, and at every call.
        elif _layout(self._weight) != _pointwise_layout(self._weight.shape[:2], rows):
            self._weight = _pointwise(self._weight.to_dense(), rows)
        self._rows = rows


def _pixels(rows: Tensor) -> Tensor:
    """Rows (..., d) as a map (1, d, 1, rows) with channels last, in the same memory if they lie one after another."""
    return rows.contiguous().view(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)


def _pointwise(weight: Tensor, rows: int) -> Tensor:
    """Lay the weights (d_out, d_in) out for so many pixels."""
    d_out, d_in = weight.shape[:2]
    packed: Tensor = _ops._reorder_convolution_weight(weight.view(d_out, d_in, 1, 1), *_POINTWISE, (1, d_in, 1, rows))
    return packed


def _layout(packed: Tensor) -> bytes:
    return bytes(_ops._get_mkldnn_serialized_md(packed).tolist())


@lru_cache(maxsize=256)  # a network has some widths, each at the sizes of some pictures
def _pointwise_layout(features: torch.Size, rows: int) -> bytes:
    return _layout(_pointwise(torch.zeros(features, dtype=torch.bfloat16), rows))


class PackedConv2d(nn.Module):
    """What a convolution gives, to rounding; (b, c_in, h, w) -> (b, c_out, h', w').

    Args:
        conv: with padding by zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._weight, self._bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        assert isinstance(conv.padding, tuple)  # in pixels, not by name
        self._how = conv.padding, conv.stride, conv.dilation, conv.groups
        self._packed = False

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self._packed:
            size = self._weight.nbytes
            self._weight = _ops._reorder_convolution_weight(self._weight, *self._how, x.shape)
            self._packed = True
            FREED.add(size)
        out: Tensor = _ops._convolution_pointwise(x, self._weight, self._bias, *self._how, "none", [], "")
        return out


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why these layers cannot run there, or None."""
    if device.type != "cpu":
        return f"it needs the CPU, the device is {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return "it computes in float32 and bfloat16 only"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this PyTorch was built without oneDNN"
    x = torch.ones(2, 16, 2, 2, dtype=dtype)
    try:
        with torch.inference_mode():
            PackedConv2d(nn.Conv2d(16, 16, 1, dtype=dtype))(x)
            for kind in (PackedLinear, PackedPointwise):
                layer = kind(torch.ones(16, 16, dtype=dtype), None, gelu=True)
                rows = x.view(-1, 16)
                layer(rows, factor=layer(rows, added=rows))
                layer(rows[1:])
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"a trial run failed ({str(error).strip().splitlines()[0]})"
    return None
