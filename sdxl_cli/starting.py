"""Imports as fast as they go: nothing is looked for in vain, and the device opens while PyTorch comes in."""

import ctypes
import gc
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def roomy(call: Callable[[], int]) -> int:
    """Make a call from which calls may go deep for nothing.

    Python keeps frames in pieces of 16 KB. A loop that calls across the end of one has the system map a piece and take
    it back each time: 3800 times in the imports of a picture, most of them in numpy's, whose depth in ours is just so.
    A frame that claims 512 KB is given 1 MB, and what it calls shares the rest; the system fills only what is touched.
    """
    return call()


roomy.__code__ = roomy.__code__.replace(co_stacksize=1 << 16)


@contextmanager
def importing(device: str) -> Iterator[None]:
    """Around the first imports of PyTorch, which take seconds of one core.

    What modules are made of stays: no garbage is looked for among it, neither now nor ever after. A GPU's driver makes
    its context on another core; where it cannot, PyTorch finds out for itself and says why.

    Args:
        device: auto, cpu, cuda or cuda:N.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    opening = threading.Thread(target=_open_driver, args=(device,), name="driver")
    opening.start()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        opening.join()


def _open_driver(device: str) -> None:
    """Make the context that every library for CUDA shares in this process; 0.3 s, without Python's lock."""
    if device == "cpu":
        return
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    number, context = ctypes.c_int(), ctypes.c_void_p()
    index = int(re.sub(r"\D", "", device) or 0)
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(number), index) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number)
