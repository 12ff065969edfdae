"""Linear layers and convolutions whose weights lie as oneDNN wants them, on a CPU.

PyTorch's own layers bring the weights into that layout at every call, and in float32 give linear layers to MKL instead,
which is slower on some processors. The layout depends on the size of the input, so each layer arranges its weights at
its first call; other sizes work too, with the cost of arranging them again. What is kept replaces the plain weights.

The operators are those that PyTorch's compiler calls. They have been in it since 2.1, but are no promise of it:
`why_not` tries them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdxl_core.ops.heap import FREED

_ops = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """What a linear layer gives, to rounding; (..., d_in) -> (..., d_out).

    Args:
        weight: (d_out, d_in).
        bias: (d_out,) or None.
        gelu: apply the exact GELU to the result, before it is rounded.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        super().__init__()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._after = ("gelu", "none") if gelu else ("none", "")
        self._packed = False

    def forward(self, x: Tensor, *, factor: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """Map x.

        Args:
            x: (..., d_in).
            factor: (..., d_out) by which the result is multiplied before it is rounded.
            added: (..., d_out) that is added to the result before it is rounded; not beside a factor.
        """
        if not self._packed:
            rows = x.numel() // x.shape[-1]
            size = self._weight.nbytes
            self._weight, self._packed = _ops._reorder_linear_weight(self._weight.contiguous(), rows), True
            FREED.add(size)
        out: Tensor
        if factor is not None:
            out = _ops._linear_pointwise.binary(x, factor, self._weight, self._bias, "mul")
        elif added is not None:
            out = _ops._linear_pointwise.binary(x, added, self._weight, self._bias, "add")
        else:
            out = _ops._linear_pointwise(x, self._weight, self._bias, self._after[0], [], self._after[1])
        return out


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
            pack: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
            size = self._weight.nbytes
            self._weight, self._packed = pack(self._weight.to_mkldnn(), *self._how, x.shape), True
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
            layer = PackedLinear(torch.ones(16, 16, dtype=dtype), None, gelu=True)
            rows = x.view(-1, 16)
            layer(rows, factor=layer(rows, added=rows))
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"a trial run failed ({str(error).strip().splitlines()[0]})"
    return None
