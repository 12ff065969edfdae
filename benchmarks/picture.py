"""From prompts to pictures in a warm process: in the memory of the host, and as PNG files on disk.

PYTHONPATH=. python benchmarks/picture.py [--preset sdxl-base-1.0 --model FILE --size 1024x1024 --steps 30]
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from bench.command import Benchmark, device_of, model_of, options, run
from bench.figures import Facts, Load
from bench.models import EVERYTHING, Model, our_engine, prompt_of, their_facts, their_pipeline
from bench.turns import Contender, Run
from torch import Tensor

import sdxl_core
from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps
from sdxl_core.output import write_whole
from sdxl_core.pipeline import decode, sample
from sdxl_core.records import Record, encode_picture
from sdxl_core.work import plan_work

if TYPE_CHECKING:
    from bench.machine import Clock

_PARTS = {"text": "text", "network": "network", "decode": "first stage"}


@dataclass(frozen=True, slots=True)
class Pictures:
    """`count` pictures of other words and noise, drawn as one batch, in memory or on disk."""

    model: Model
    device: str
    end: Literal["memory", "disk"] = "disk"
    count: int = 1

    def work(self) -> Mapping[str, Load]:
        parts = plan_work(self.model.plan(0), self.model.config)
        return {
            _PARTS[part.name]: Load(part.work.total * self.count, part.calls)
            for part in parts
            if part.work is not None and part.calls is not None
        }

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        return self._ours(contender, clock) if contender.ours else self._theirs(contender, clock)

    def _ours(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        engine, facts = our_engine(self.model, contender, self.device, *EVERYTHING)

        def draw(seed: int) -> Any:
            plans = [self.model.plan(seed + i) for i in range(self.count)]
            with tempfile.TemporaryDirectory() as folder, clock:
                *_, last = sample(engine, plans)
                pictures = decode(engine, last.x)
                for plan, picture in zip(plans, pictures, strict=True) if self.end == "disk" else ():
                    record = Record(
                        software=f"sdxl {sdxl_core.__version__}",
                        plan=engine.stamp(plan),
                        sigmas=plan.sigmas(),
                        model_calls=plan.model_calls() or 0,
                    )
                    write_whole(Path(folder) / f"{plan.seed}.png", encode_picture(picture, "png", record))
            return np.stack(pictures) / np.float32(127.5) - 1

        return facts, draw

    def _theirs(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        pipeline = their_pipeline(self.model, contender.dtype, self.device)
        facts = their_facts({name: getattr(pipeline, name) for name in pipeline.components if hasattr(pipeline, name)})
        if contender.name == "diffusers compiled":
            pipeline.unet.forward = torch.compile(pipeline.unet.forward)
            pipeline.vae.decode = torch.compile(pipeline.vae.decode)
        timesteps = list(legacy_ddpm_timesteps(self.model.steps))
        height, width = self.model.size
        scale, kind = self.model.plan(0).guider.scale, getattr(torch, contender.dtype)

        def noise(seed: int) -> Tensor:
            # Drawn in 16 bit, as the pipeline would, it is another noise before PyTorch 2.14.
            return torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed)).to(kind)

        def draw(seed: int) -> Any:
            with tempfile.TemporaryDirectory() as folder, clock:
                pictures = pipeline(
                    [prompt_of(seed + i) for i in range(self.count)],
                    height=height,
                    width=width,
                    timesteps=timesteps,
                    guidance_scale=scale,
                    latents=torch.cat([noise(seed + i) for i in range(self.count)]),
                    output_type="pil" if self.end == "disk" else "np",
                ).images
                for i, picture in enumerate(pictures if self.end == "disk" else ()):
                    picture.save(f"{folder}/{seed + i}.png")
            if self.end == "memory":  # from 0 to 1; rounded as ours, which is bytes already
                return (pictures * np.float32(255)).round() / np.float32(127.5) - 1
            return np.stack([np.asarray(picture) for picture in pictures]) / np.float32(127.5) - 1

        return facts, draw


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    place = f"{model.preset} at {model.size[1]}x{model.size[0]}, {model.steps} guided steps of Euler"
    where = f"{model.preset}-{device.split(':')[0]}"
    return [
        Benchmark(
            f"image-{where}", f"From a prompt to a picture in memory, {place}", Pictures(model, device, "memory")
        ),
        Benchmark(f"picture-{where}", f"From a prompt to a PNG on disk, {place}", Pictures(model, device)),
    ]


def main() -> None:
    args = options(__doc__).parse_args()
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
