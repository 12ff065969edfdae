"""The machine that measures: what it is, how fast it is at best, how long and how much memory something takes."""

import os
import platform
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from bench.figures import Rates

_REPEATS = 3


class Clock:
    """Times the block that it is entered for, with everything that the device has been given to do.

    Attributes:
        seconds: of the last block.
        child_bytes: most memory of a process that the block has started; 0 where it starts none.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.child_bytes = 0
        self._began = 0.0

    def __enter__(self) -> None:
        self._wait()
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        self.seconds = time.perf_counter() - self._began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Memory:
    """Memory of this process: on CUDA what is allocated there, else what is resident beyond what is there now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0 if device.type == "cuda" else _status_bytes("VmRSS")

    def restart(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.init()  # a process that only starts others has not
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_bytes(self) -> int:
        """The most since `restart`."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return _status_bytes("VmHWM") - self._before


def _status_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def measure_rates(device: torch.device, dtypes: tuple[str, ...], seed: int) -> Rates:
    """The best of a few large products and copies of random numbers.

    On a CPU a product is taken of whichever of the two libraries is faster.
    """
    on_cuda = device.type == "cuda"
    side, count = (8192, 2**29) if on_cuda else (2048, 2**26)
    clock, generator = Clock(device), torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    copied = 2 * 4 * count / _best(clock, partial(torch.empty(count, device=device).copy_, random(count)))
    found = {}
    for name in dtypes:
        dtype = getattr(torch, name)
        a, b = random(side, side).to(dtype), random(side, side).to(dtype)
        ways = [partial(torch.nn.functional.linear, a, b)]
        if not on_cuda and dtype is torch.float32 and torch.backends.mkldnn.is_available():
            ways.append(partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], ""))
        found[name] = 2 * side**3 / min(_best(clock, way) for way in ways)
    return Rates(found, copied)


def _best(clock: Clock, run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(_REPEATS):
        with clock:
            run()
        times.append(clock.seconds)
    return min(times)


def describe(device: torch.device) -> str:
    """One line: processor or card, cores, versions."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        size = f"{properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} SMs"
        return f"{properties.name} ({size}), CUDA {torch.version.cuda}, {versions}"
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
