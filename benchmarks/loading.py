"""From a file in the page cache to a model that is ready, ours from one file and diffusers' from its folder.

    PYTHONPATH=. python benchmarks/loading.py [--preset sdxl-base-1.0 --model FILE]

diffusers' folder is written anew before the first run, with the same weights in the dtype that is loaded. The first run
of each warms the page cache; imports are not counted.
"""

import argparse
import gc
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bench.command import Benchmark, device_of, model_of, options, run
from bench.figures import Facts, Load
from bench.models import EVERYTHING, Model, our_engine, their_facts, their_pipeline
from bench.turns import Contender, Run

if TYPE_CHECKING:
    from bench.machine import Clock


@dataclass(frozen=True, slots=True)
class Loading:
    """The floor is a copy of the weights as they are in memory: read once, written once."""

    model: Model
    device: str

    def work(self) -> Mapping[str, Load]:
        return {part: Load(0, calls=2) for part in EVERYTHING}

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        return self._ours(contender, clock) if contender.ours else self._theirs(contender, clock)

    def _ours(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        def load(seed: int) -> Any:
            gc.collect()
            with clock:
                engine, _ = our_engine(self.model, contender, self.device, *EVERYTHING)
            return _touch(engine.network)

        _, facts = our_engine(self.model, contender, self.device, *EVERYTHING)
        return facts, load

    def _theirs(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        from diffusers import StableDiffusionXLPipeline

        folder = tempfile.TemporaryDirectory()
        pipeline = their_pipeline(self.model, contender.dtype, "cpu")
        pipeline.save_pretrained(folder.name)
        facts = their_facts({name: getattr(pipeline, name) for name in pipeline.components if hasattr(pipeline, name)})
        del pipeline

        def load(seed: int) -> Any:
            gc.collect()
            with clock:
                loaded = StableDiffusionXLPipeline.from_pretrained(
                    Path(folder.name), torch_dtype=getattr(torch, contender.dtype)
                ).to(self.device)
            return _touch(loaded.unet)

        return facts, load


def _touch(network: Any) -> Any:
    """A number of every weight, so that none is left unread."""
    return np.array([float(parameter.flatten()[-1]) for parameter in network.parameters()])


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    name = f"loading-{model.preset}-{device.split(':')[0]}"
    title = f"Loading {model.preset} from the page cache"
    return [Benchmark(name, title, Loading(model, device), ("ours", "ours plain", "diffusers"), compared=False)]


def main() -> None:
    args = options(__doc__).parse_args()
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
