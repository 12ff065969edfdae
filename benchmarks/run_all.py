"""Every benchmark, one after the other, and their tables in docs/performance.md.

    PYTHONPATH=. python benchmarks/run_all.py --docs docs/performance.md [--full sd_xl_base_1.0.safetensors]
    PYTHONPATH=. python benchmarks/run_all.py --preset sdxl-base-1.0 --model FILE --steps 30    # on a GPU

Without flags this is micro on this machine. On a CPU, --full adds one guided step of the published size at 512x512.
"""

import argparse
from pathlib import Path

import cold_start
import cpu
import first_stage
import guided_step
import loading
import picture
import text_encoding
import throughput
from bench.command import Benchmark, options, run

EVERYWHERE = (guided_step, first_stage, text_encoding, picture, throughput, loading, cold_start)
FEW = {"loading": 5, "cold": 5, "throughput": 5}
"""Most runs of what takes long."""


def benchmarks(args: argparse.Namespace) -> list[tuple[Benchmark, argparse.Namespace]]:
    """Each with the flags that it is run with."""
    found = []
    for script in EVERYWHERE:
        for benchmark in script.benchmarks(args):
            kind = benchmark.name.split("-")[0]
            runs = min(args.runs, FEW.get(kind, args.runs))
            found.append((benchmark, argparse.Namespace(**{**vars(args), "runs": runs})))
    return found + cpu.full_size(args)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--full", type=Path, metavar="FILE", help="a file of sdxl-base-1.0, trained or not, for the CPU"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="step, decode, encode, text, picture, ...")
    args = parser.parse_args()
    for benchmark, flags in benchmarks(args):
        if args.only is None or benchmark.name.split("-")[0] in args.only:
            run(benchmark, flags)


if __name__ == "__main__":
    main()
