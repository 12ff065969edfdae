"""Products of bfloat16 matrices whose sums stay in float32, on a CPU with instructions for such products.

PyTorch's operators round them to bfloat16. The function that does not is the one that PyTorch's compiler calls in code
that it writes, for blocks of a product, each by one thread. Blocks are given out here to the threads on which PyTorch's
operators run: threads of our own would find those on their cores, where they wait for the next operator for 3 ms.

Releases 2.11 and 2.14 of PyTorch have the function, but it is no promise of theirs: `why_not` tries it.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 256
"""Of a block, so that there are blocks enough for all threads."""

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def pack(b: Tensor) -> Tensor:
    """Lay b out as `multiply` wants it, by pairs of numbers: (c, n, d) of bfloat16, d even -> (c, d / 2, 2 n)."""
    return b.view(torch.int32).transpose(1, 2).contiguous().view(torch.bfloat16)


def multiply(a: Tensor, packed: Tensor, out: Tensor) -> None:
    """Write a b^T, of so many matrices, into the first n columns of `out`; only where `why_not` says None.

    Args:
        a: (c, rows, d) of bfloat16, the numbers of a row side by side.
        packed: of b (c, n, d).
        out: (c, rows, n or more) of float32, the numbers of a row side by side.
    """
    (count, rows, d), n = a.shape, packed.shape[2] // 2
    assert torch.backends.mkldnn.enabled  # what does not fit ends the process below, or writes to any memory
    assert (a.dtype, packed.dtype, out.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert (packed.shape[0], packed.shape[1] * 2, *out.shape[:2]) == (count, d, count, rows)
    assert n <= out.shape[2] and a.stride(2) == out.stride(2) == packed.stride(2) == 1  # noqa: PT018
    brgemm, release, in_parallel = _functions()
    lines = a.stride(1), packed.stride(1) // 2, out.stride(1)
    blocks = iter(
        [
            (min(_ROWS, rows - row), n, d, *lines, False, _at(a, i, row), _at(packed, i, 0), _at(out, i, row), True)
            for i, row in product(range(count), range(0, rows, _ROWS))
        ]
    )
    failures: list[BaseException] = []

    def work(_: object) -> None:
        try:
            for block in blocks:  # one after the other, whichever thread asks
                brgemm(*block)
            release(True)
        except BaseException as failure:  # such as Ctrl+C, which would be lost on the way through C
            failures.append(failure)

    in_parallel(_Task(work), None, torch.get_num_threads(), 0)
    if failures:
        raise failures[0]


def _at(matrices: Tensor, index: int, row: int) -> int:
    return matrices.data_ptr() + matrices.itemsize * (index * matrices.stride(0) + row * matrices.stride(1))


def why_not() -> str | None:
    """The reason why `multiply` cannot run, or None."""
    if not torch.backends.mkldnn.enabled:
        return "oneDNN is switched off"
    return _tried()


@cache
def _tried() -> str | None:
    try:
        # Where the function cannot run it ends the process, so what it goes by is asked for first.
        getenv = ctypes.CDLL(torch._C.__file__).getenv
        getenv.restype = ctypes.c_char_p
        if getenv(b"ONEDNN_MAX_CPU_ISA") or getenv(b"DNNL_MAX_CPU_ISA"):
            return "oneDNN is told not to use all that the processor can"
        if not (torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()):
            return "the processor has no AVX-512 instructions for bfloat16, or this PyTorch no oneDNN"
        a, b = torch.arange(2 * 3 * 18).to(torch.bfloat16).view(2, 3, 18), torch.ones(2, 5, 18, dtype=torch.bfloat16)
        out = torch.zeros(2, 3, 6)
        multiply(a, pack(b), out)
    except (OSError, RuntimeError, AttributeError) as error:
        return f"a trial run failed ({str(error).strip().splitlines()[0]})"
    sums = a.sum(2, keepdim=True, dtype=torch.float32).expand(2, 3, 5)
    return None if torch.equal(out, F.pad(sums, (0, 1))) else "a trial run failed (its sums are wrong)"


@cache
def _functions() -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """A block of a product, the end of a thread's blocks, and the call of a function by some threads."""
    library = ctypes.CDLL(torch._C.__file__)  # and all that it is linked with
    brgemm = library._ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb
    release = library._ZN2at6native7cpublas14brgemm_releaseEb
    in_parallel = library.GOMP_parallel
    size, pointer, yes = ctypes.c_int64, ctypes.c_void_p, ctypes.c_bool
    brgemm.argtypes = (*[size] * 6, yes, *[pointer] * 3, yes)
    release.argtypes = (yes,)
    in_parallel.argtypes = (_Task, pointer, ctypes.c_uint, ctypes.c_uint)
    for function in (brgemm, release, in_parallel):
        function.restype = None
    return brgemm, release, in_parallel
