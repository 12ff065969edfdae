"""From a cold shell to a picture on disk, the whole command as a user waits for it; and where its time goes.

    PYTHONPATH=. python benchmarks/cold_start.py [--preset sdxl-base-1.0 --model FILE] [--parts]

diffusers' side is the shortest script that draws the same picture: it imports, loads a folder of the same weights,
draws and saves. The parts are timed in fresh processes of their own; they do not sum up to the whole. Python finds
bytecode of all its modules, as from the second run of a program on, also where the environment keeps it from writing
any.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench.command import ROOT, Benchmark, device_of, model_of, options, run
from bench.figures import Facts, Load
from bench.models import EVERYTHING, Model, our_engine, prompt_of, their_facts, their_pipeline
from bench.turns import Contender, Run
from picture import Pictures
from PIL import Image

from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps

if TYPE_CHECKING:
    from bench.machine import Clock

THEIRS = """
import sys
import torch
from diffusers import StableDiffusionXLPipeline
folder, dtype, device, prompt, seed, size, guidance, timesteps, out = sys.argv[1:]
width, height = map(int, size.split("x"))
pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).to(device)
pipe.set_progress_bar_config(disable=True)
noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(int(seed)))
picture = pipe(
    prompt, height=height, width=width, guidance_scale=float(guidance), timesteps=list(map(int, timesteps.split(","))),
    latents=noise.to(getattr(torch, dtype)),
).images[0]
picture.save(out)
"""

BEGIN = """
import sys, time
marks = [("", float(sys.argv[2]))]
def mark(name): marks.append((name, time.time()))
mark("start Python")
from sdxl_cli.starting import roomy
roomy(lambda: exec(sys.argv[1], globals()))
"""

PARTS = """
import sdxl_cli.__main__, sdxl_cli.app, sdxl_cli.jobs, sdxl_cli.drawing
mark("command line: typer, presets, pydantic, numpy")
from sdxl_cli.starting import importing
with importing("auto"):  # opens the device meanwhile
    import torch; mark("import torch")
    import sdxl_core.engine, sdxl_core.pipeline; mark("import the engine")
from sdxl_core.plan import build_plan
from sdxl_core.presets import load_preset
preset = load_preset(PRESET)
plan = build_plan(preset, "a cat", seed=1); mark("plan")
from sdxl_core.devices import resolve_device
device = resolve_device()
torch.empty(1, device=device); mark("open the device")
engine = sdxl_core.engine.load_engine(preset.model, MODEL); mark("load the weights")
from sdxl_core.passes import apply_passes
engine = apply_passes(engine); mark("passes")
with torch.inference_mode():
    sdxl_core.pipeline.condition(engine, [plan], uncond=True)
mark("encode the prompt")
for step in sdxl_core.pipeline.sample(engine, [plan]):
    if step.index == 0: mark("first step (on CUDA two)")
mark("the other steps")
pictures = sdxl_core.pipeline.decode(engine, step.x); mark("decode")
for (_, before), (name, after) in zip(marks, marks[1:]):
    print(f"{after - before:.3f}\\t{name}")
print(time.time())
sdxl_cli.__main__.leave()
"""


@dataclass(frozen=True, slots=True)
class Cold:
    """A process for a picture, its imports and the loading included; peak memory is all that the largest one had."""

    model: Model
    device: str

    def work(self) -> Mapping[str, Load]:
        return Pictures(self.model, self.device).work()

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        height, width = self.model.size
        size, scale = f"{width}x{height}", f"{self.model.plan(0).guider.scale:g}"
        scratch = tempfile.TemporaryDirectory()
        out = Path(scratch.name) / "out.png"
        if contender.ours:
            _, facts = our_engine(self.model, contender, self.device, *EVERYTHING)
        else:
            pipeline = their_pipeline(self.model, contender.dtype, "cpu")
            pipeline.save_pretrained(scratch.name)
            parts = {name: getattr(pipeline, name) for name in pipeline.components if hasattr(pipeline, name)}
            facts = their_facts(parts)
        timesteps = ",".join(map(str, legacy_ddpm_timesteps(self.model.steps)))

        def command(seed: int) -> list[str]:
            if contender.ours:
                recipe = ["--sampler", "euler", "--schedule", "legacy_ddpm", "--steps", str(self.model.steps)]
                machine = ["--dtype", contender.dtype, "--device", self.device, "--overwrite", "--quiet"]
                model = ["--preset", self.model.preset, "--model", str(self.model.file), "--guidance", scale]
                passes = ["--passes", "none"] if contender.name == "ours plain" else []
                picture = [*passes, "--seed", str(seed), "--size", size, "-o", str(out)]
                return ["-m", "sdxl_cli", "gen", prompt_of(seed), *model, *recipe, *machine, *picture]
            told = [contender.dtype, self.device, prompt_of(seed), str(seed), size, scale, timesteps, str(out)]
            return ["-c", THEIRS, scratch.name, *told]

        def start(seed: int) -> Any:
            with clock:
                done = _python(*command(seed))
            clock.child_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
            if done.returncode:
                raise RuntimeError(done.stderr[-300:])
            with Image.open(out) as picture:
                return np.asarray(picture) / np.float32(127.5) - 1

        return facts, start


def _python(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run Python from the root, where what is imported leaves its bytecode for the next run."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def parts_table(model: Model, runs: int) -> str:
    """Where the time of our command goes, with the sampler of the preset."""
    script = PARTS.replace("MODEL", repr(str(model.file))).replace("PRESET", repr(model.preset))
    found = [_parts(script) for _ in range(runs + 1)][1:]  # the first may have to write bytecode
    lines = ["| seconds (median) | part |", "|---|---|"]
    for i, (_, name) in enumerate(found[0]):
        lines.append(f"| {statistics.median(part[i][0] for part in found):.3f} | {name} |")
    return "\n".join(lines)


def _parts(script: str) -> list[tuple[float, str]]:
    done = _python("-c", BEGIN, script, repr(time.time()))
    done.check_returncode()
    *lines, last = done.stdout.splitlines()
    ending = time.time() - float(last)
    return [*((float(line.split("\t")[0]), line.split("\t")[1]) for line in lines), (ending, "end of the process")]


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    place = f"{model.preset} at {model.size[1]}x{model.size[0]}, {model.steps} guided steps of Euler"
    name = f"cold-{model.preset}-{device.split(':')[0]}"
    title = f"From a cold shell to a PNG on disk, weights in the page cache, {place}"
    return [Benchmark(name, title, Cold(model, device), ("ours", "ours plain", "diffusers"), pictures=1)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--parts", action="store_true", help="only where the time of our command goes")
    args = parser.parse_args()
    if args.parts:
        print(parts_table(model_of(args), args.runs))
        return
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
