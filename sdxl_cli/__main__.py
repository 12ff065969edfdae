"""The `sdxl` program."""

import os
import sys

# Before anything imports pydantic, which would look for plugins in the metadata of every installed package: about 20 ms
# of the 190 that `sdxl presets list` takes beside torch and its like, for nothing.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

from sdxl_cli.boundary import run


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
