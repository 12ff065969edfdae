"""Attention kernels as one table: each entry knows what it cannot do and says so in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdxl_core.errors import DeviceError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""softmax(q k^T / sqrt(d)) v; q (b, heads, n, d), k and v (b, heads, m, d) -> (b, heads, n, d)."""


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """One way to compute attention.

    Args:
        name: what `--attention` calls it.
        fn: the kernel.
        why_not: (device, dtype, head size) -> the reason why the kernel cannot run there, or None if it can.
    """

    name: str
    fn: Attention
    why_not: Callable[[torch.device, torch.dtype, int], str | None]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by whichever kernel PyTorch prefers for these inputs; works everywhere."""
    return F.scaled_dot_product_attention(q, k, v)


def _only(backend: SDPBackend) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    # xformers counts heads after tokens.
    out: Tensor = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _anywhere(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None


def _why_not_cuda(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, this one is {device.type}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return None


_HALF = (torch.float16, torch.bfloat16)


def _why_not_half(dtype: torch.dtype) -> str | None:
    return (
        None if dtype in _HALF else f"it computes in float16 and bfloat16 only, not {str(dtype).removeprefix('torch.')}"
    )


def _why_not_head(head_dim: int, largest: int, multiple: int = 1) -> str | None:
    if head_dim > largest:
        return f"its heads are at most {largest} wide, this one is {head_dim}"
    if head_dim % multiple:
        return f"its heads are a multiple of {multiple} wide, this one is {head_dim}"
    return None


def _why_not_cudnn(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return _why_not_cuda(device) or _why_not_half(dtype) or _why_not_head(head_dim, 128, 8)


def _why_not_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type == "cpu":  # PyTorch's kernel of that name for the CPU takes every floating dtype and head size
        return None
    return _why_not_cuda(device) or _why_not_half(dtype) or _why_not_head(head_dim, 256)


def _why_not_efficient(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return _why_not_cuda(device)


def _why_not_xformers(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    try:
        import xformers.ops  # noqa: F401
    except Exception as error:  # a build for another PyTorch fails in ways of its own
        return f"xformers cannot be imported ({type(error).__name__}: {error})"
    return _why_not_cuda(device) or _why_not_half(dtype) or _why_not_head(head_dim, 256, 8)


_TABLE = (
    AttentionBackend("sdpa", sdpa, _anywhere),
    AttentionBackend("cudnn", _only(SDPBackend.CUDNN_ATTENTION), _why_not_cudnn),
    AttentionBackend("flash", _only(SDPBackend.FLASH_ATTENTION), _why_not_flash),
    AttentionBackend("efficient", _only(SDPBackend.EFFICIENT_ATTENTION), _why_not_efficient),
    AttentionBackend("xformers", _xformers, _why_not_xformers),
    AttentionBackend("math", _only(SDPBackend.MATH), _anywhere),
)

BACKENDS: Mapping[str, AttentionBackend] = MappingProxyType({backend.name: backend for backend in _TABLE})


def resolve_attention(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionBackend:
    """The backend called `name`, or a good one for "auto".

    Args:
        name: "auto" or a key of `BACKENDS`.
        device: where the tensors live.
        dtype: of q, k and v.
        head_dim: features of one head.

    Raises:
        DeviceError: no such backend, or it refuses this device, dtype or head size.
    """
    if name == "auto":
        return BACKENDS["sdpa"]
    if name not in BACKENDS:
        raise DeviceError(f"unknown attention backend {name!r}", hint=f"one of: auto, {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    reason = backend.why_not(device, dtype, head_dim)
    if reason is not None:
        raise DeviceError(f"attention backend {name!r} cannot be used: {reason}", hint="leave the choice to auto")
    return backend
