"""Attention kernels as one table: each entry knows what it cannot do and says so in words."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdxl_core.errors import DeviceError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""softmax(q k^T / sqrt(d)) v; q (b, heads, n, d), k and v (b, heads, m, d) -> (b, heads, n, d)."""


WhyNot = Callable[[torch.device, torch.dtype, int], str | None]
"""(device, dtype, head size) -> a reason to refuse, or None."""


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """One way to compute attention.

    Args:
        name: what a user calls it.
        fn: the kernel.
        why_not: (device, dtype, head size) -> the reason why the kernel cannot run there, or None if it can.
    """

    name: str
    fn: Attention
    why_not: WhyNot


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by whichever kernel PyTorch prefers for these inputs; works everywhere."""
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two matrix products and a softmax, all in the dtype given; holds every weight of every token."""
    out: Tensor = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
    return out


Softmax = Callable[[Tensor, float, torch.dtype], Tensor]
"""(scores, scale, dtype) -> the softmax of scale * scores over the last axis, of that dtype."""


def _softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (scores * scale).softmax(-1).to(dtype)


def wide_scores(q: Tensor, k: Tensor, v: Tensor, *, softmax: Softmax = _softmax) -> Tensor:
    """Attention as two matrix products, with the scores and their softmax in float32 whatever the inputs are.

    In 16 bit a score of 100 errs by 3 % of its weight.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
    if q.is_cuda and q.dtype != wide:
        scores = torch.bmm(queries, keys, out_dtype=wide)
    else:
        scores = queries.to(wide) @ keys.to(wide)
    out: Tensor = softmax(scores, q.shape[-1] ** -0.5, v.dtype).view(*q.shape[:3], -1) @ v
    return out


_SCORES_BYTES = 2**22
"""Of the heads that are attended at a time, so that their scores stay in the processor's caches."""

_KEYS_MULTIPLE = 16
"""Numbers of keys at which products and softmax in float32 are fast: 80 take four fifths of the time of 77."""

_FEWEST_SCORES, _MOST_SCORES = 2**17, 2**21
"""In all heads, below which PyTorch's kernel is faster; in one head, above which it is no slower and holds less."""


def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention on a CPU in 16 bit as two large products for some heads at a time, scores and softmax in float32.

    PyTorch's kernel makes many small products, of 64 queries by 512 keys, and each asks oneDNN for its code.
    """
    (b, heads, n, d), m = q.shape, k.shape[2]
    if b * heads * n * m < _FEWEST_SCORES or n * m > _MOST_SCORES or _trains(q, k, v):
        return sdpa(q, k, v)
    out = q.new_empty(b, n, heads, d).transpose(1, 2)  # as the layer behind it wants it
    padded = -(-m // _KEYS_MULTIPLE) * _KEYS_MULTIPLE
    most = min(heads, max(2, _SCORES_BYTES // (4 * n * padded)))  # two at least, for as many cores
    count = -(-heads // -(-heads // most))
    scores, weights = q.new_empty(count, n, padded, dtype=torch.float32), q.new_empty(count, n, padded)
    keys = scores.new_empty(padded, count, d).transpose(0, 1)  # as the layer before has them
    keys[:, m:] = 0
    for row in range(b):
        for first in range(0, heads, count):
            part = row, slice(first, min(first + count, heads))
            queries = q[part].to(torch.float32, copy=True).mul_(d**-0.5)
            theirs, rounded = scores[: len(queries)], weights[: len(queries)]
            keys[: len(queries), :m] = k[part]
            torch.bmm(queries, keys[: len(queries)].transpose(1, 2), out=theirs)
            theirs[..., m:] = -torch.inf
            torch.softmax(theirs, -1, out=theirs)
            rounded.copy_(theirs)
            torch.bmm(rounded[..., :m], v[part], out=out[part])
    return out


def _trains(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


_FEWEST_WORDS, _MOST_WORDS, _WORDS_HEAD = 17, 256, 64
"""Keys, and features of a head, for which there is a kernel of ours."""


def words_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of many queries to few keys by a kernel of ours, where Triton runs; all else by cuDNN's first."""
    few = _FEWEST_WORDS <= k.shape[2] <= _MOST_WORDS and k.shape[2] < q.shape[2]
    known = q.itemsize == 2 and q.shape[3] == _WORDS_HEAD and all(part.stride(3) == 1 for part in (q, k, v))
    if few and known and not _trains(q, k, v) and (kernel := _kernel_for_words(q.device)) is not None:
        return kernel(q, k, v)
    return _CUDNN_FIRST(q, k, v)


@cache
def _kernel_for_words(device: torch.device) -> Attention | None:
    from sdxl_core.ops import kernels

    if kernels.why_not(device) is not None:
        return None
    from sdxl_core.ops.kernels.words import attend

    return attend


def in_query_chunks(attention: Attention, block_bytes: int) -> Attention:
    """The same attention, some queries at a time: what a kernel holds of the weights q k^T is at most `block_bytes`."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = max(1, block_bytes // (q.shape[0] * q.shape[1] * k.shape[2] * q.itemsize))
        return torch.cat([attention(part, k, v) for part in torch.split(q, rows, dim=2)], dim=2)

    return attend


def _only(backend: SDPBackend) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _first(*order: SDPBackend) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([*order], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    # xformers counts heads after tokens.
    out: Tensor = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _on_cuda(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, this one is {device.type}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return None


def _on_ampere(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if reason := _on_cuda(device, dtype, head_dim):
        return reason
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"it needs compute capability 8.0, this GPU has {major}.{minor}"


def _in(*dtypes: torch.dtype) -> WhyNot:
    def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        names = " and ".join(str(known).removeprefix("torch.") for known in dtypes)
        return None if dtype in dtypes else f"it computes in {names} only, not in {str(dtype).removeprefix('torch.')}"

    return why_not


def _on_cpu(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None if device.type == "cpu" else f"it is for the CPU, this device is {device.type}"


def _heads(*, largest: int = 2**16, multiple: int = 1) -> WhyNot:
    def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if head_dim > largest:
            return f"its heads are at most {largest} wide, this one is {head_dim}"
        if head_dim % multiple:
            return f"the width of its heads is a multiple of {multiple}, this one is {head_dim}"
        return None

    return why_not


def _imports_xformers(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    try:
        import xformers.ops  # noqa: F401
    except Exception as error:  # a build for another PyTorch fails in ways of its own
        return f"xformers cannot be imported ({type(error).__name__}: {error})"
    return None


def _trial(fn: Attention) -> WhyNot:
    def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        q = torch.zeros(1, 1, 8, head_dim, device=device, dtype=dtype)
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                fn(q, q, q)
        except (RuntimeError, NotImplementedError) as error:
            return f"a trial run failed ({str(error).strip().splitlines()[0]})"
        return None

    return why_not


def _backend(name: str, fn: Attention, *rules: WhyNot) -> AttentionBackend:
    # The rules have the better words; the trial knows what this build, driver and GPU can really do.
    return AttentionBackend(name, fn, _rules(*rules, _trial(fn)))


def _rules(*rules: WhyNot) -> WhyNot:
    return lambda *given: next((reason for rule in rules if (reason := rule(*given)) is not None), None)


def _flash_rules(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type == "cpu":  # PyTorch has a CPU kernel of that name, without these limits
        return None
    return _on_ampere_in_half(device, dtype, head_dim)


def _words_rules(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if reason := _cudnn_rules(device, dtype, head_dim):
        return reason
    if not _is_hopper(device):
        return "it is for compute capability 9.0, where it was measured"
    return None if head_dim == _WORDS_HEAD else f"its heads are {_WORDS_HEAD} wide, this one is {head_dim}"


def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


_on_ampere_in_half = _rules(_on_ampere, _in(torch.float16, torch.bfloat16), _heads(largest=256))
_cudnn_rules = _rules(_on_ampere_in_half, _heads(multiple=8))

_CUDNN, _FLASH = _only(SDPBackend.CUDNN_ATTENTION), _only(SDPBackend.FLASH_ATTENTION)
_EFFICIENT, _MATH = _only(SDPBackend.EFFICIENT_ATTENTION), _only(SDPBackend.MATH)
# What one kernel turns out to refuse goes to the next, so that these need no trial.
_FALLBACKS = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
_CUDNN_FIRST = _first(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_FALLBACKS)
_FLASH_FIRST = _first(SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, *_FALLBACKS)

_TABLE = (
    _backend("sdpa", sdpa),
    AttentionBackend("words_first", words_first, _words_rules),
    AttentionBackend("cudnn_first", _CUDNN_FIRST, _cudnn_rules),
    AttentionBackend("flash_first", _FLASH_FIRST, _on_ampere_in_half),
    AttentionBackend("head_by_head", head_by_head, _rules(_on_cpu, _in(torch.bfloat16))),
    _backend("cudnn", _CUDNN, _cudnn_rules),
    _backend("flash", _FLASH, _flash_rules),
    _backend("efficient", _EFFICIENT, _on_cuda, _in(torch.float16, torch.bfloat16, torch.float32), _heads(multiple=4)),
    _backend("xformers", _xformers, _imports_xformers, _on_cuda),
    _backend("math", _MATH),
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
        return BACKENDS[_preferred(device, dtype, head_dim)]
    if name not in BACKENDS:
        raise DeviceError(f"unknown attention backend {name!r}", hint=f"one of: auto, {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    reason = backend.why_not(device, dtype, head_dim)
    if reason is not None:
        raise DeviceError(f"attention backend {name!r} cannot be used: {reason}", hint="leave the choice to auto")
    return backend


def _preferred(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """What is fastest where it can be had; PyTorch's own order differs from release to release.

    With heads 64 wide cuDNN's kernel is published as 1.2 times as fast as FlashAttention-2 on Hopper, and as slower on
    Ampere. None of these needs a trial, which would build a plan that no picture uses.
    """
    if device.type == "cuda":
        for name in ("words_first", "cudnn_first", "flash_first") if _is_hopper(device) else ("flash_first",):
            if BACKENDS[name].why_not(device, dtype, head_dim) is None:
                return name
    return "head_by_head" if BACKENDS["head_by_head"].why_not(device, dtype, head_dim) is None else "sdpa"
