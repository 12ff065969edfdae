"""The `sdxl` program."""

import atexit
import contextlib
import os
import sys
from typing import NoReturn

# Before anything imports pydantic, which would look for plugins in the metadata of every installed package: about 20 ms
# of the 190 that `sdxl presets list` takes beside torch and its like, for nothing.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

from sdxl_cli.boundary import run


def main() -> None:
    """Run the command line and exit with its code."""
    code = run()
    if code == 0 and "torch" in sys.modules:
        leave()
    sys.exit(code)


def leave() -> NoReturn:
    """End a process that has done all that it was asked for: files are whole, threads have no work left.

    Python would take PyTorch apart first, object by object: 0.5 s, for memory that the system takes back anyway.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
