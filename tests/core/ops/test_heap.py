"""Memory that weights have left is the system's again."""

import re
from pathlib import Path

import torch

from sdxl_core.ops.heap import Freed


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def test_what_was_freed_between_what_stays_is_given_back() -> None:
    size = 2**23
    early = torch.ones(2 * size, dtype=torch.uint8)
    del early  # from now on the C library takes what is smaller from its heap
    blocks = [torch.ones(size, dtype=torch.uint8) for _ in range(40)]
    last = torch.ones(size, dtype=torch.uint8)  # above them
    del blocks
    held = resident_bytes()
    freed = Freed()
    freed.add(size)
    assert freed.count == size
    freed.add(39 * size)
    assert freed.count == 0
    assert held - resident_bytes() > 20 * size
    assert bool((last == 1).all())
