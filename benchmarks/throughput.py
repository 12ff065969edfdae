"""Several pictures in one batch, from their prompts to the memory of the host; by the clock of the whole batch.

PYTHONPATH=. python benchmarks/throughput.py [--batch 4] [--preset sdxl-base-1.0 --model FILE --steps 30]
"""

import argparse

from bench.command import Benchmark, device_of, model_of, options, run
from picture import Pictures


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    place = f"{model.preset} at {model.size[1]}x{model.size[0]}, {model.steps} guided steps of Euler"
    name, title = f"throughput-{model.preset}-{device.split(':')[0]}", f"{args.batch} pictures in one batch, {place}"
    return [Benchmark(name, title, Pictures(model, device, "memory", args.batch), pictures=args.batch)]


def main() -> None:
    args = options(__doc__).parse_args()
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
