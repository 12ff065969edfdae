"""From a cold shell to a picture on disk: the whole command, and where its time goes.

    python benchmarks/cold_start.py [--model FILE] [--runs 5]

The command is timed from outside, as a user waits for it. The parts are timed once each in fresh processes; they do
not sum up exactly, since the command overlaps nothing but shares imports between them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = """
import time
clock = time.perf_counter
marks = [("", clock())]
def mark(name): marks.append((name, clock()))
import sdxl_cli.app; mark("command line: typer, presets, pydantic")
import torch; mark("import torch")
import sdxl_core.engine, sdxl_core.pipeline; mark("import the engine")
from sdxl_core.plan import build_plan
from sdxl_core.presets import load_preset
preset = load_preset("micro")
plan = build_plan(preset, "a cat", seed=1); mark("plan")
engine = sdxl_core.engine.load_engine(preset.model, MODEL); mark("load the weights")
with torch.inference_mode():
    sdxl_core.pipeline.condition(engine, [plan], uncond=True)
mark("encode the prompt")
for step in sdxl_core.pipeline.sample(engine, [plan]):
    if step.index == 0: mark("first step, with the prompt encoded once more")
mark("the other 29 steps")
pictures = sdxl_core.pipeline.decode(engine, step.x); mark("decode")
for (_, before), (name, after) in zip(marks, marks[1:]):
    print(f"{after - before:.3f}\\t{name}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="micro's weights; default: those in the package")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    model = args.model or Path(__file__).parent.parent / "sdxl_core" / "weights" / "micro.safetensors"

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdxl_cli", "gen", "a cat", "--preset", "micro", "--model", str(model)]
        seconds = []
        for run in range(args.runs + 1):
            began = time.perf_counter()
            subprocess.run([*command, "-o", f"{folder}/{run}.png"], check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
    print(f"cores {os.cpu_count()}, first run {seconds[0]:.2f} s, then median of {args.runs}: ", end="")
    print(f"{statistics.median(seconds[1:]):.2f} s (fastest {min(seconds[1:]):.2f}, slowest {max(seconds[1:]):.2f})\n")

    script = PARTS.replace("MODEL", repr(str(model)))
    runs = [_parts(script) for _ in range(args.runs)]
    print("| seconds (median) | part |\n| --- | --- |")
    for i, (_, name) in enumerate(runs[0]):
        print(f"| {statistics.median(run[i][0] for run in runs):.3f} | {name} |")


def _parts(script: str) -> list[tuple[float, str]]:
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return [(float(line.split("\t")[0]), line.split("\t")[1]) for line in out.splitlines()]


if __name__ == "__main__":
    main()
