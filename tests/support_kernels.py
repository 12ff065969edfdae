"""What the kernels for a GPU promise, in PyTorch's own words and any precision."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool, shift: Tensor | None = None
) -> Tensor:
    assert x.is_contiguous(memory_format=torch.channels_last)
    shifted = x if shift is None else x + shift.reshape(-1, shift.shape[-1], 1, 1)
    normed = F.group_norm(shifted, groups, weight, bias, eps)
    return (F.silu(normed) if silu else normed).contiguous(memory_format=torch.channels_last)


def add(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    return x + y if bias is None else x + y + bias[:, None, None]


def normed_sums(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, shift: Tensor | None = None
) -> Tensor:
    normed = group_norm(x, weight, bias, groups, eps, silu=True, shift=shift)
    height, width = x.shape[2:]
    whole = F.pad(normed, (1, 1 + width % 2, 1, 1 + height % 2))
    seen = whole.unfold(2, 4, 2).unfold(3, 4, 2).permute(4, 5, 0, 2, 3, 1)  # line, column, then places and channels
    over_lines = seen.new_tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    return torch.einsum("il,jk,lkbhwc->ijbhwc", over_lines, over_lines, seen).reshape(16, -1, x.shape[1])


def outputs(products: Tensor, like: Tensor, added: Tensor | None, bias: Tensor | None) -> Tensor:
    b, _, height, width = like.shape
    high, wide = (height + 1) // 2, (width + 1) // 2
    counts = products.new_tensor([[1, 1, 1, 0], [0, 1, -1, -1]])
    laid = products.view(4, 4, b, high, wide, -1)
    out = torch.einsum("yi,xj,ijbhwc->bchywx", counts, counts, laid).reshape(b, -1, 2 * high, 2 * wide)
    out = out[:, :, :height, :width]
    out = out if bias is None else out + bias[:, None, None]
    return (out if added is None else out + added).contiguous(memory_format=torch.channels_last)


def doubling_sums(x: Tensor) -> Tensor:
    """Along either side a pixel, what its predecessor has more, what its successor has; nothing around the map."""
    seen = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).permute(4, 5, 0, 2, 3, 1)
    sums = seen.new_tensor([[0, 1, 0], [1, -1, 0], [0, -1, 1]])
    return torch.einsum("il,jk,lkbhwc->ijbhwc", sums, sums, seen).reshape(9, -1, x.shape[1])


def doubled(products: Tensor, like: Tensor, bias: Tensor) -> Tensor:
    b, _, height, width = like.shape
    counts = products.new_tensor([[1, 1, 0], [1, 0, 1]])
    laid = products.view(3, 3, b, height, width, -1)
    out = torch.einsum("yi,xj,ijbhwc->bchywx", counts, counts, laid).reshape(b, -1, 2 * height, 2 * width)
    return (out + bias[:, None, None]).contiguous(memory_format=torch.channels_last)


def join(x: Tensor, y: Tensor) -> Tensor:
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    return torch.cat([x, y], dim=1)


def interleave(maps: Tensor, bias: Tensor) -> Tensor:
    height, width = maps.shape[2] - 1, maps.shape[3] - 1
    out = maps.new_empty(len(maps), len(bias), 2 * height, 2 * width)
    for i, each in enumerate(maps.chunk(4, dim=1)):
        row, column = divmod(i, 2)
        out[:, :, row::2, column::2] = each[:, :, row : row + height, column : column + width]
    return (out + bias[:, None, None]).contiguous(memory_format=torch.channels_last)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    delta: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    total = x if delta is None else x + delta
    return total, F.layer_norm(total if delta_bias is None else total + delta_bias, weight.shape, weight, bias, eps)


def gated(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    value, gate = F.linear(rows, weight, bias).chunk(2, dim=1)
    return value * F.gelu(gate)
