"""A prompt and a negative prompt through the text towers, from the words on.

PYTHONPATH=. python benchmarks/text_encoding.py [--preset sdxl-base-1.0 --model FILE]
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from bench.command import Benchmark, device_of, model_of, options, run
from bench.figures import Facts, Load
from bench.models import Model, our_engine, prompt_of, their_facts, their_parts
from bench.turns import Contender, Run

from sdxl_core.flops import text_work
from sdxl_core.pipeline import condition

if TYPE_CHECKING:
    from bench.machine import Clock


@dataclass(frozen=True, slots=True)
class Text:
    """Both sides of guidance, each with words."""

    model: Model
    device: str

    def work(self) -> Mapping[str, Load]:
        return {"text": Load((text_work(self.model.config.conditioner) * 2).total)}

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        return self._ours(contender, clock) if contender.ours else self._theirs(contender, clock)

    def _ours(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        engine, facts = our_engine(self.model, contender, self.device, "text")

        def encode(seed: int) -> Any:
            plan = self.model.plan(seed).model_copy(update={"negative": prompt_of(seed + 2**31)})
            with clock:
                prompts = condition(engine, [plan], uncond=True)
            assert prompts.uncond is not None
            sides = (prompts.uncond.crossattn, prompts.parts[0].crossattn)
            return torch.cat(sides).float().cpu().numpy()

        return facts, encode

    def _theirs(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        parts = their_parts(self.model, contender.dtype, self.device, "text")
        facts = their_facts(parts)
        if contender.name == "diffusers compiled":
            for name in ("text_encoder", "text_encoder_2"):
                parts[name].forward = torch.compile(parts[name].forward)
        from diffusers import StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline(
            **parts, vae=None, unet=None, scheduler=None, add_watermarker=False, force_zeros_for_empty_prompt=True
        )

        def encode(seed: int) -> Any:
            with clock:
                cond, uncond, _, _ = pipeline.encode_prompt(
                    prompt_of(seed), device=self.device, negative_prompt=prompt_of(seed + 2**31)
                )
            return torch.cat([uncond, cond]).float().cpu().numpy()

        return facts, encode


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    name, title = f"text-{model.preset}-{device.split(':')[0]}", f"Encoding a prompt and a negative of {model.preset}"
    paths = ("ours", "diffusers", "diffusers compiled")  # no pass touches the towers
    return [Benchmark(name, title, Text(model, device), paths)]


def main() -> None:
    args = options(__doc__).parse_args()
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
