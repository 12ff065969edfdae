"""Memory that weights have left is the system's again."""

import re
import subprocess
import sys
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


LAYERS = """
import resource
from sdxl_core.ops.heap import keep_for_the_next_layer

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [b"x" * 2**24 for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [pages_taken() for _ in range(4)]
keep_for_the_next_layer()
print(min(before[2:]), max([pages_taken() for _ in range(4)][2:]))
"""


def test_what_one_layer_frees_the_next_one_has_without_the_system() -> None:
    # A process of its own, whose heap has no holes.
    said = subprocess.run([sys.executable, "-c", LAYERS], capture_output=True, text=True, check=True).stdout
    before, after = map(int, said.split())
    assert before > 2**12  # a third of its pages at least
    assert after < 100
