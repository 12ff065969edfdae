"""Products of bfloat16 matrices against float64, and in words where they are not to be had."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from support_networks import randn, relative_error
from torch import Tensor

from sdxl_core.ops.brgemm import multiply, pack, why_not

REASON = str(why_not())

# Sums that are wrong are for the tests to find.
pytestmark = pytest.mark.skipif(REASON != "None" and "sums are wrong" not in REASON, reason=REASON)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many for PyTorch as long as the test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(count: int, rows: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    """Matrices of each rows and columns as heads lie in a layer's features."""
    return (
        randn(rows, count, d, seed=1).bfloat16().transpose(0, 1),
        randn(n, count, d, seed=2).bfloat16().transpose(0, 1),
    )


@pytest.mark.parametrize(
    ("count", "rows", "n", "d"), [(3, 300, 77, 64), (1, 1, 1, 2), (2, 257, 130, 10), (5, 30, 16, 512)]
)
def test_a_product_is_rounded_to_float32_alone_and_writes_nothing_beside_it(
    count: int, rows: int, n: int, d: int, threads: int
) -> None:
    a, b = drawn(count, rows, n, d)
    out = torch.full((count, rows, n + 3), 7.0)
    multiply(a, pack(b), out)
    assert relative_error(out[..., :n], a.double() @ b.double().transpose(1, 2)) <= 1e-6
    assert out[..., n:].eq(7).all()


def test_some_matrices_of_many_and_some_rows_of_them_are_where_their_tensors_say() -> None:
    a, b = drawn(4, 600, 33, 16)
    out = torch.zeros(4, 600, 40)
    multiply(a[1:3, 40:420], pack(b)[1:3], out[1:3, 40:420])
    assert relative_error(out[1:3, 40:420, :33], a[1:3, 40:420].double() @ b[1:3].double().transpose(1, 2)) <= 1e-6
    assert out.count_nonzero() == 2 * 380 * 33


def test_a_tensor_that_does_not_fit_is_refused_before_its_memory_is_read() -> None:
    a, b = drawn(2, 20, 30, 16)
    out = torch.zeros(2, 20, 30)
    for wrong in (
        (a[:1], pack(b), out),
        (a, pack(b[..., :8]), out),
        (a, pack(b), out[..., :20]),
        (a, pack(b), out[:, :10]),
        (a.transpose(1, 2), pack(b), out),
        (a.float(), pack(b), out),
        (a, pack(b), out.double()),
    ):
        with pytest.raises(AssertionError):
            multiply(*wrong)


def test_an_interrupt_is_not_lost_in_it() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def until_interrupted() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        for _ in range(200):
            multiply(a, packed, out)

    a, b = drawn(20, 256, 256, 64)
    packed, out = pack(b), torch.zeros(20, 256, 256)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                until_interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_it_is_not_to_be_had_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert why_not() == "oneDNN is switched off"


def test_it_is_not_tried_where_a_try_would_end_the_process() -> None:
    command = [sys.executable, "-c", "from sdxl_core.ops.brgemm import why_not; print(why_not())"]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "oneDNN is told not to use all that the processor can\n"
