"""The recipe's scripts are no package: they import each other by bare names, as when they are run."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks" / "micro"), str(Path(__file__).parent)]
