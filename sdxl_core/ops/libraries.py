"""The libraries for a GPU, which set themselves up at their first call: some tenths of a second in each process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F

from sdxl_core.ops.attention import Attention


@contextmanager
def set_up_beside(device: torch.device, dtype: torch.dtype, attention: Attention) -> Iterator[None]:
    """Have a first call made of each library while the block waits for other things, as for a disk.

    They work without Python's lock. Nothing of them is heard: what fails here fails again where its result is wanted.

    Args:
        device: cpu, where nothing is done, or cuda.
        dtype: of the networks.
        attention: their kernel, which nothing in the block may call.
    """
    if device.type != "cuda":
        yield
        return
    calls = [partial(call_each, device, dtype, attention), *compiler_key()]
    threads = [threading.Thread(target=_try, args=(call,), name="libraries") for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()  # its handles are the next thread's that asks for some


def compiler_key() -> list[Callable[[], object]]:
    """What Triton finds its kernels on disk by: the sha256 of its own 400 MB, which a process computes once.

    Imports Triton; empty where that fails, as `sdxl_core.ops.kernels.why_not` will say.
    """
    try:
        from triton.runtime.cache import triton_key
    except Exception:
        return []
    return [triton_key]


def _try(call: Callable[[], object]) -> None:
    with suppress(Exception):
        call()


@torch.inference_mode()
def call_each(device: torch.device, dtype: torch.dtype, attention: Attention) -> None:
    """Products with and without a bias, a convolution, attention: the smallest that are like a network's."""
    rows, kernel = (torch.ones(shape, device=device, dtype=dtype) for shape in ((64, 64), (64, 64, 3, 3)))
    torch.zeros_like(rows).addmm_(rows, F.linear(rows, rows, rows[0]))
    maps = rows.view(1, 64, 8, 8).to(memory_format=torch.channels_last)
    F.conv2d(maps, kernel.to(memory_format=torch.channels_last), padding=1)
    heads = rows.view(1, 1, 64, 64)
    attention(heads, heads, heads)
    F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
