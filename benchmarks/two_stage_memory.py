"""Peak memory and time of one refined picture for every way that two models share a machine.

    python benchmarks/two_stage_memory.py --preset sdxl-base-1.0 --refiner-preset sdxl-refiner-1.0 --device cuda
    python benchmarks/two_stage_memory.py --preset sdxl-base-1.0 --refiner-preset sdxl-refiner-1.0 --device card

`card` is the stand-in of the tests: a device whose tensors lie apart and are counted, and with which the CPU computes.
Its bytes are those of tensors alone; the host's are then those of the process less these, looked at every 20 ms, for
which the C library should give back at once what is freed: MALLOC_MMAP_THRESHOLD_=1000000 in the environment.

Every way runs in a process of its own, through the program itself; all of them must write the same pixels. Words after
`--` go to `sdxl gen`, such as `-- --size 512x512 --steps 10`.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WAYS = ("keep", "offload", "reload")
CARD = "card"


def main() -> None:
    """Run every way in a child, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", required=True)
    parser.add_argument("--refiner-preset", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--way", choices=WAYS, help="run this way here and print its figures as JSON")
    parser.add_argument("more", nargs="*", help="further flags of sdxl gen, after --")
    given = parser.parse_args()
    flags = ["--preset", given.preset, "--refiner-preset", given.refiner_preset, *given.more]
    if given.way is not None:
        print(json.dumps(measure(given.way, given.device, flags)))
        return
    print(f"{'way':8} {'host GB':>8} {'device GB':>10} {'seconds':>8}  pixels")
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:]]
        command[2:2] = ["--way", way]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(
            f"{way:8} {found['host_bytes'] / 1e9:8.3f} {found['device_bytes'] / 1e9:10.3f} {found['seconds']:8.1f}  "
            f"{found['sha256'][:10]}"
        )


def measure(way: str, device: str, flags: list[str]) -> dict[str, object]:
    """Two pictures, so that every model has a second turn; peaks are of the whole process, in bytes."""
    import numpy as np
    from PIL import Image

    from sdxl_cli.boundary import run

    with stand_in() if device == CARD else machine() as peaks, tempfile.TemporaryDirectory() as folder:
        where = ["-o", folder, "--memory", way, "--quiet", "--format", "png"]
        where += [] if device == CARD else ["--device", device]
        began = time.monotonic()
        saved, sys.stdout = sys.stdout, sys.stderr
        code = run(["gen", "a cat", "--seed", "7", "-n", "2", "--refiner", *where, *flags])
        sys.stdout = saved
        if code:
            sys.exit(code)
        digest = hashlib.sha256()
        for path in sorted(Path(folder).iterdir()):
            with Image.open(path) as image:
                digest.update(np.asarray(image).tobytes())
        return peaks() | {"seconds": time.monotonic() - began, "sha256": digest.hexdigest()}


Peaks = Callable[[], dict[str, object]]
"""`host_bytes` and `device_bytes`, at the worst so far."""


@contextmanager
def machine() -> Iterator[Peaks]:
    """The process, and CUDA's allocator."""
    import torch

    yield lambda: {
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }


@contextmanager
def stand_in() -> Iterator[Peaks]:
    """Have the program find the stand-in, which no flag of its own names; what the process holds beside it, and it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch
    from support_card import plugged_in

    from sdxl_core import devices

    devices.resolve_device = lambda name="auto": torch.device(CARD, 0)
    on_host, beside, done = devices.free_memory_bytes, 0, threading.Event()

    def free(device: torch.device) -> int | None:
        """What the card holds lies in the host's memory, and is no part of it."""
        left = on_host(device)
        return None if left is None else left + card.now

    devices.free_memory_bytes = free

    def look() -> None:
        nonlocal beside
        while not done.wait(0.02):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            beside = max(beside, resident - card.now)

    with plugged_in() as card:
        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield lambda: {"host_bytes": beside, "device_bytes": card.peak}
        finally:
            done.set()
            thread.join()


if __name__ == "__main__":
    main()
