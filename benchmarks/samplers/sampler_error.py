"""Measure every sampler on every schedule: how far from the solution do so many model calls end?

    PYTHONPATH=. python benchmarks/samplers/sampler_error.py --out DIR [--model micro.safetensors [--minutes M]] \\
        [--docs docs/samplers.md]

The mixture has a closed form and takes a few minutes; the trained network is asked too where --model names its weights.
Writes DIR/mixture.json, DIR/law.json, DIR/micro-DIGEST.jsonl (every walk of the network as soon as it is done),
DIR/errors.csv and the figures. What is in these files already is not measured again, so a run that was stopped, or that
had only so many minutes, goes on where it was; the files must go when a sampler changes, or what is asked.
With --docs also puts the tables between that document's marks, and figures and CSV into samplers/ beside it.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "micro"))  # the scripts are no package

import error_tables
import micro_error
import mixture_error
import torch
from error_pages import FOLDER, micro_figures, micro_text, mixture_figures, mixture_text, runs_of
from report import write_docs


def measured(path: Path, measure: Callable[[], Any]) -> Any:
    """What a file holds, written first where there is none."""
    if not path.exists():
        path.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="weights of the preset's model")
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for the network; without a limit if not given")
    parser.add_argument("--docs", type=Path, help="document whose figures are replaced")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    args.out.mkdir(parents=True, exist_ok=True)
    mixture = measured(args.out / "mixture.json", mixture_error.measure_equation)
    law = measured(args.out / "law.json", mixture_error.measure_law)
    runs = {f"mixture, guidance {scale}": runs_of(part) for scale, part in mixture.items()}
    texts = {"mixture": mixture_text(mixture), "law": error_tables.law(law, mixture_error.LAW_BUDGETS)}
    files = mixture_figures(mixture)
    if args.model is not None:
        micro = micro_error.measure_micro(args.model, args.preset, args.out, 60 * args.minutes)
        runs |= {f"micro, guidance {scale}": runs_of(part) for scale, part in micro["laws"].items()}
        texts["micro"] = micro_text(micro, mixture)
        files |= micro_figures(micro)
    files["errors.csv"] = error_tables.to_csv(runs).encode()
    for name, content in files.items():
        (args.out / name).write_bytes(content)
    for part, text in texts.items():
        print(text)
        if args.docs is not None:
            write_docs(args.docs, text, part)
    if args.docs is not None:
        (args.docs.parent / FOLDER).mkdir(exist_ok=True)
        for name in files:
            shutil.copyfile(args.out / name, args.docs.parent / FOLDER / name)


if __name__ == "__main__":
    main()
