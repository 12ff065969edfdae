"""One guided step of the UNet: network on both sides, guidance, and Euler's update of the latent.

    PYTHONPATH=. python benchmarks/guided_step.py [--preset sdxl-base-1.0 --model FILE --size 512x512]

Words are random numbers of the size of an encoding, so that no text tower is in memory. Without a negative prompt, as
`gen` and diffusers are without one, those of the unconditional side are zeros; a second table has words on both sides.
Ours is a step that another one with the same words has gone before, as all but a picture's first have.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from bench.command import Benchmark, device_of, model_of, options, run
from bench.figures import Facts, Load
from bench.models import Model, our_engine, pooled_width, sinusoids, their_facts, their_parts, told_numbers
from bench.turns import Contender, Run
from torch import Tensor

from sdxl_core.diffusion.guiders import Prompts, build_guider
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.flops import network_work
from sdxl_core.types import Conditioning

if TYPE_CHECKING:
    from bench.machine import Clock

STEP = 10  # of the schedule's: neither the first nor the last


@dataclass(frozen=True, slots=True)
class Inputs:
    """A latent, and the words of both sides: (2, 77, d) and (2, pooled), the unconditional first."""

    x: Tensor
    words: Tensor
    pooled: Tensor


@dataclass(frozen=True, slots=True)
class GuidedStep:
    model: Model
    device: str
    negative: bool

    def work(self) -> Mapping[str, Load]:
        network = network_work(self.model.config.network, self.model.latent[1:]) * 2
        return {"network": Load(network.total)}

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        if contender.ours:
            return self._ours(contender, clock)
        return self._theirs(contender, clock)

    def _inputs(self, seed: int, sigma: float) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, *self.model.latent, generator=generator) * (1 + sigma**2) ** 0.5
        words = torch.randn(2, 77, self.model.config.network.context_dim, generator=generator)
        pooled = torch.randn(2, pooled_width(self.model), generator=generator)
        if not self.negative:
            words[0] = pooled[0] = 0
        return Inputs(*(tensor.to(self.device) for tensor in (x, words, pooled)))

    def _ours(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        engine, facts = our_engine(self.model, contender, self.device, "network")
        plan = self.model.plan(0)
        sigmas = plan.schedule()
        walked = (sigmas[STEP], sigmas[STEP + 1])
        told = sinusoids(self.model, told_numbers(self.model)).to(self.device)
        guider = build_guider(plan.guider, sigmas, engine.config.network)

        def step(seed: int) -> Any:
            given = self._inputs(seed, walked[0])
            words = Conditioning(given.words, torch.cat([given.pooled, told.expand(2, -1)], dim=1)).to(
                dtype=engine.dtype
            )
            uncond, cond = (Conditioning(words.crossattn[i : i + 1], words.vector[i : i + 1]) for i in (0, 1))
            if engine.leaves_out_blank and not self.negative:
                uncond = uncond.without_words()
            denoise = guider.bind(engine.denoiser, engine.predict, Prompts((cond,), uncond=uncond))
            noise: Any = None  # Euler draws none
            denoise(given.x.flip(2), sigmas[STEP - 1])  # what is made once a prompt is there then
            with clock:
                *_, last = SAMPLERS["euler"].fn(denoise, given.x, walked, noise=noise)
            return last.x.cpu().numpy()

        return facts, step

    def _theirs(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        parts = their_parts(self.model, contender.dtype, self.device, "network")
        unet, dtype = parts["unet"], getattr(torch, contender.dtype)
        facts = their_facts(parts)
        if contender.name == "diffusers compiled":
            unet = torch.compile(unet)
        plan = self.model.plan(0)
        sigma, following = plan.schedule()[STEP : STEP + 2]
        from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps

        timestep = torch.tensor(float(legacy_ddpm_timesteps(plan.steps)[STEP]), device=self.device)
        numbers = told_numbers(self.model).to(self.device, dtype).repeat(2, 1)
        predicts_v = self.model.config.denoiser.scaling == "v"

        def step(seed: int) -> Any:
            given = self._inputs(seed, sigma)
            words, pooled = given.words.to(dtype), given.pooled.to(dtype)
            with clock:
                doubled = torch.cat([given.x, given.x]).to(dtype) / (sigma**2 + 1) ** 0.5
                added = {"text_embeds": pooled, "time_ids": numbers}
                said = unet(doubled, timestep, words, added_cond_kwargs=added, return_dict=False)[0]
                uncond, cond = said.chunk(2)
                said = (uncond + plan.guider.scale * (cond - uncond)).float()
                if predicts_v:
                    denoised = said * (-sigma / (sigma**2 + 1) ** 0.5) + given.x / (sigma**2 + 1)
                else:
                    denoised = given.x - sigma * said
                x = given.x + (given.x - denoised) / sigma * (following - sigma)
            return x.cpu().numpy()

        return facts, step


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    title = f"A guided step of {model.preset} at {model.size[1]}x{model.size[0]}, one network call of two rows"
    place = f"{model.preset}-{device.split(':')[0]}"
    return [
        Benchmark(f"step-{place}", f"{title}, no negative prompt", GuidedStep(model, device, negative=False)),
        Benchmark(f"negative-{place}", f"{title}, with a negative prompt", GuidedStep(model, device, negative=True)),
    ]


def main() -> None:
    args = options(__doc__).parse_args()
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
