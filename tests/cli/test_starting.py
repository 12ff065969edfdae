"""What goes on while modules are imported."""

import gc
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdxl_cli.starting import importing, roomy

ROOT = Path(__file__).parents[2]

OPENED = """
import ctypes
from sdxl_cli.starting import importing

with importing("cuda:0"):
    pass
driver, flags, active = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint(), ctypes.c_int()
assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
assert active.value == 1
import torch

assert torch.arange(3, device="cuda").sum().item() == 3
assert driver.cuCtxGetCurrent(ctypes.byref(found := ctypes.c_void_p())) == 0
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(shared := ctypes.c_void_p()), 0) == 0
assert found.value == shared.value
"""


@pytest.fixture
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_thawed")
@pytest.mark.parametrize("device", ["cpu", "cuda:1000"])
def test_no_garbage_is_looked_for_meanwhile_nor_among_modules_after(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    before = gc.get_freeze_count()
    with importing(device):
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before + len(sys.modules)


def test_nothing_changes_where_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with importing("cpu"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_calls_at_any_depth_take_no_memory_of_the_system_again_and_again() -> None:
    def nothing() -> None:
        pass

    def faults_at(depth: int) -> int:
        """The most that 300 calls caused, at this depth of calls or a lesser one."""
        deeper = faults_at(depth - 1) if depth else 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(300):
            nothing()
        return max(deeper, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    assert roomy(lambda: faults_at(400)) < 100


@pytest.mark.gpu
def test_the_context_is_the_one_that_pytorch_takes() -> None:
    done = subprocess.run([sys.executable, "-c", OPENED], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
