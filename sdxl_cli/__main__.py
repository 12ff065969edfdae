"""The `sdxl` program."""

import atexit
import os
import signal
import sys
from types import FrameType

# Before anything imports pydantic, which would look for plugins in the metadata of every installed package: about 20 ms
# of the 190 that `sdxl presets list` takes beside torch and its like, for nothing.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

from sdxl_cli.starting import roomy


def main() -> None:
    """Run the command line and exit with its code."""
    code = roomy(_run)
    if code == 0 and "torch" in sys.modules and _is_all(sys._getframe().f_back):
        leave()
    sys.exit(code)


def _run() -> int:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback
    from sdxl_cli.boundary import run  # here, so that its imports have room

    signal.signal(signal.SIGINT, before)
    return run()


def _is_all(caller: FrameType | None) -> bool:
    """Whether Python has nothing else to run: after the program profilers and debuggers speak, and `-i` listens."""
    if sys.flags.inspect:
        return False
    callers = []
    while caller is not None:
        callers.append(caller.f_code.co_name)
        caller = caller.f_back
    return callers in (["<module>"], ["<module>", "_run_code", "_run_module_as_main"])  # the script; python -m


def leave() -> None:
    """End a process that has done all that it was asked for: files are whole, threads have no work left.

    Python would take PyTorch apart first, object by object: 0.5 s, for memory that the system takes back anyway. Where
    what was printed cannot be written this returns: Python has words and a code for that.
    """
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (OSError, ValueError):
        return
    os._exit(0)


if __name__ == "__main__":
    main()
