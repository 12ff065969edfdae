"""Memory of the host: what weights have left is given back to the system, what layers leave is kept for the next."""

import contextlib
import ctypes
from dataclasses import dataclass

_TRIM_BYTES = 2**26
"""How much of what weights have left the C library may keep: a trim takes milliseconds."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What `mallopt` of glibc calls them."""

_KEPT_BYTES, _LARGE_BYTES = 2**28, 2**25
"""Of what layers leave the C library may keep so much, but of pieces larger than that nothing: it allows no more."""


@dataclass(slots=True)
class Freed:
    """Counts what is freed, and has it given back now and then, which the C library does not do by itself.

    It keeps it in holes between what took its place: 1 GB of SDXL's network in bfloat16.
    """

    count: int = 0

    def add(self, count: int) -> None:
        """Tell of bytes on the host that are free from now on."""
        self.count += count
        if self.count >= _TRIM_BYTES:
            with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
                ctypes.CDLL(None).malloc_trim(0)
            self.count = 0


FREED = Freed()


def keep_for_the_next_layer() -> None:
    """Have the C library keep what the layers of a network free, for this process: else it goes back and forth.

    The system gives memory page by page, for longer than a layer takes to write it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
