"""The recipe's scripts are no package: they import each other by bare names, as when they are run."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

sys.path[:0] = [str(BENCHMARKS / "micro"), str(BENCHMARKS / "samplers"), str(BENCHMARKS), str(Path(__file__).parent)]
