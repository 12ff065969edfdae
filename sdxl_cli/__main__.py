"""The `sdxl` program."""

import sys

from sdxl_cli.boundary import run


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
