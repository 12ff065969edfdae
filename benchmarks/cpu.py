"""What a plain CPU does: the shipped model from prompt to PNG, and one guided step of the published size at 512x512.

    PYTHONPATH=. python benchmarks/cpu.py [--full FILE]

The full-size network takes 10 GB in float32 and 5 GB in bfloat16; there one path is in memory at a time.
"""

import argparse
from pathlib import Path

import guided_step
import picture
from bench.command import Benchmark, options, run


def small(args: argparse.Namespace) -> list[tuple[Benchmark, argparse.Namespace]]:
    """The shipped model end to end, with the flags that it is run with."""
    flags = argparse.Namespace(**{**vars(args), "device": "cpu"})
    return [(benchmark, flags) for benchmark in picture.benchmarks(flags)]


def full_size(args: argparse.Namespace) -> list[tuple[Benchmark, argparse.Namespace]]:
    """One guided step of the published size; nothing without its file."""
    if args.full is None:
        return []
    given = {"preset": "sdxl-base-1.0", "model": args.full, "size": "512x512", "device": "cpu", "alone": True}
    few = {"runs": min(args.runs, 3), "warmup": min(args.warmup, 1)}
    flags = argparse.Namespace(**{**vars(args), **given, **few})
    return [(benchmark, flags) for benchmark in guided_step.benchmarks(flags)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--full", type=Path, metavar="FILE", help="a file of sdxl-base-1.0, trained or not")
    args = parser.parse_args()
    for benchmark, flags in small(args) + full_size(args):
        run(benchmark, flags)


if __name__ == "__main__":
    main()
