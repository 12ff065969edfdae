"""Libraries for a GPU are set up while a model is read."""

import threading
import time

import pytest
import torch
from torch import Tensor

from sdxl_core.ops.attention import sdpa
from sdxl_core.ops.libraries import call_each, compiler_key, set_up_beside


def _refusing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("no kernel")


def test_each_is_called_with_what_it_takes() -> None:
    called = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        called.append((q.shape, q.dtype, threading.current_thread().name))
        return sdpa(q, k, v)

    call_each(torch.device("cpu"), torch.bfloat16, attention)
    assert called == [(torch.Size([1, 1, 64, 64]), torch.bfloat16, threading.current_thread().name)]


def test_a_cpu_has_none() -> None:
    before = threading.active_count()
    with set_up_beside(torch.device("cpu"), torch.float32, _refusing):
        assert threading.active_count() == before


def test_the_compiler_computes_its_key_once() -> None:
    pytest.importorskip("triton", reason="part of PyTorch for Linux")
    (key,) = compiler_key()
    first = key()
    began = time.perf_counter()
    assert key() is first
    assert time.perf_counter() - began < 0.01


@pytest.mark.gpu
def test_a_failure_is_left_to_the_call_whose_result_is_wanted() -> None:
    with set_up_beside(torch.device("cuda"), torch.float16, _refusing):
        pass


@pytest.mark.gpu
def test_first_calls_beside_a_block_leave_none_to_wait_for() -> None:
    device, before = torch.device("cuda"), threading.active_count()
    with set_up_beside(device, torch.float16, sdpa):
        pass
    assert threading.active_count() == before
    call_each(device, torch.float16, sdpa)  # not one of them fails
    rows = torch.ones(64, 64, device=device, dtype=torch.float16)
    began = time.perf_counter()
    assert (rows @ rows).float().sum().item() == 64**3
    assert time.perf_counter() - began < 0.1
