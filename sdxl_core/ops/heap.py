"""Memory of the host that weights have left, given back to the system while others take their place."""

import contextlib
import ctypes
from dataclasses import dataclass

_TRIM_BYTES = 2**26
"""How much the C library may keep of what was freed: a trim takes milliseconds."""


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
