"""Base and refiner, number by number beside diffusers' two pipelines with the same random weights.

diffusers hands over at `denoising_end` and `denoising_start`, or gives the finished latent to its image-to-image
pipeline; the noise that this adds is the next draw of the generator that made the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from support_chain import SDXL_BETAS, big_g, chain_parts, network, tokenizer, under
from support_diffusers import diffusers_vae
from support_networks import relative_error
from support_tiny import tiny_config, tiny_tensors, write_tiny_checkpoint
from torch import Tensor

from sdxl_core.config import SamplerConfig
from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import picture_noise, refine, sample
from sdxl_core.plan import Plan
from sdxl_core.refiner import RefinerPlan

LATENT_TOLERANCE = 1e-3  # relative, after all steps of both models


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "euler": lambda: EulerDiscreteScheduler(**SDXL_BETAS, timestep_spacing="leading", steps_offset=1),
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**SDXL_BETAS, algorithm_type="dpmsolver++", solver_order=2),
}


@dataclass(frozen=True)
class Pair:
    """Both models in our engine and in their pipelines."""

    base: Engine
    refiner: Engine
    their_base: StableDiffusionXLPipeline
    their_refiner: StableDiffusionXLImg2ImgPipeline


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    engines = []
    for kind in ("base", "refiner"):
        path = write_tiny_checkpoint(folder / f"{kind}.safetensors", kind)
        engines.append(load_engine(tiny_config(kind), path, device="cpu", dtype="float32"))
    config, tensors = tiny_config("refiner"), tiny_tensors("refiner")
    pipelines = [
        StableDiffusionXLPipeline(scheduler=SCHEDULERS["euler"](), **chain_parts(tiny_tensors(), tiny_config())),
        StableDiffusionXLImg2ImgPipeline(
            vae=diffusers_vae(under(tensors, "first_stage_model."), config.first_stage),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=big_g(tensors, config, 0),
            tokenizer_2=tokenizer("!"),
            unet=network(tensors, config),
            scheduler=SCHEDULERS["euler"](),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ),
    ]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    return Pair(*engines, *pipelines)


def plan_of(mode: str, **changes: Any) -> Plan:
    given = {
        "prompt": "a red apple on a blue table, 35mm",
        "negative": "blurry",
        "seed": 5,
        "steps": 30,
        "size": (64, 64),
        "original_size": (512, 384),
        "crop_coords_top_left": (8, 16),
        "target_size": (64, 64),
        "refiner": RefinerPlan(model="tiny-refiner", file="refiner.safetensors", mode=mode),
        **changes,
    }
    return Plan(model="tiny-base", file="base.safetensors", **given)


def our_latent(pair: Pair, plan: Plan) -> Tensor:
    noise = picture_noise(pair.base, [plan])
    *_, first = sample(pair.base, [plan], noise)
    *_, last = refine(pair.refiner, [plan], first.x, noise)
    return last.x


def their_latent(pair: Pair, plan: Plan, sampler: str, first: dict[str, Any], second: dict[str, Any]) -> Tensor:
    timesteps = list(legacy_ddpm_timesteps(plan.steps))
    generator = torch.Generator().manual_seed(plan.seed)
    both: dict[str, Any] = {
        "prompt": plan.prompt,
        "negative_prompt": plan.negative or None,
        "original_size": plan.original_size,
        "crops_coords_top_left": plan.crop_coords_top_left,
        "target_size": plan.target_size,
        "timesteps": timesteps,
        "guidance_scale": plan.guider.scale,
        "generator": generator,
        "output_type": "latent",
    }
    for pipeline in (pair.their_base, pair.their_refiner):
        pipeline.scheduler = SCHEDULERS[sampler]()
    latent = pair.their_base(height=plan.size[0], width=plan.size[1], **both, **first).images
    numbers = {
        "aesthetic_score": plan.aesthetic_score,
        "negative_aesthetic_score": plan.negative_aesthetic_score,
        "negative_crops_coords_top_left": plan.crop_coords_top_left,  # their default is 0, 0 whatever the prompt's is
    }
    result: Tensor = pair.their_refiner(image=latent, **both, **numbers, **second).images
    return result


@pytest.mark.parametrize("fraction", [0.8, 0.35])
@pytest.mark.parametrize("sampler", list(SCHEDULERS))
def test_a_shared_schedule_ends_in_the_same_latent(pair: Pair, sampler: str, fraction: float) -> None:
    plan = plan_of(f"share@{fraction}", sampler=SamplerConfig(name=sampler))
    theirs = their_latent(pair, plan, sampler, {"denoising_end": fraction}, {"denoising_start": fraction})
    assert relative_error(our_latent(pair, plan), theirs) <= LATENT_TOLERANCE


@pytest.mark.parametrize("sampler", list(SCHEDULERS))
def test_noise_anew_ends_in_the_same_latent(pair: Pair, sampler: str) -> None:
    plan = plan_of("sdedit@0.2", sampler=SamplerConfig(name=sampler))
    theirs = their_latent(pair, plan, sampler, {}, {"strength": 0.2})
    assert relative_error(our_latent(pair, plan), theirs) <= LATENT_TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [{"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}, {"negative": ""}, {"size": (72, 40)}],
    ids=["scores", "empty negative", "size"],
)
def test_scores_words_and_sizes_mean_the_same(pair: Pair, changes: dict[str, Any]) -> None:
    plan = plan_of("share@0.5", steps=6, **changes)
    theirs = their_latent(pair, plan, "euler", {"denoising_end": 0.5}, {"denoising_start": 0.5})
    assert relative_error(our_latent(pair, plan), theirs) <= LATENT_TOLERANCE
