"""The whole way from a prompt to a latent, number by number beside diffusers with the same random weights.

Nothing of ours runs on the other side but the weights: transformers' tokenizers and towers, diffusers' pipeline,
UNet, schedulers and autoencoder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from support_chain import SDXL_BETAS, big_g, chain_parts, network, tokenizer
from support_networks import relative_error
from support_tiny import tiny_config, tiny_tensors, write_tiny_checkpoint
from torch import Tensor

from sdxl_core.config import SamplerConfig
from sdxl_core.diffusion.discretization import legacy_ddpm_timesteps
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import condition, decode, sample
from sdxl_core.plan import Plan

STEPS = 30
NETWORK_TOLERANCE = 1e-5  # relative, one call in float32
LATENT_TOLERANCE = 1e-3  # relative, after 30 steps


@dataclass(frozen=True)
class Both:
    """Our engine and their pipeline over the same weights."""

    ours: Engine
    theirs: StableDiffusionXLPipeline


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    config, tensors = tiny_config(), tiny_tensors()
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("chain") / "tiny.safetensors")
    theirs = StableDiffusionXLPipeline(**chain_parts(tensors, config), scheduler=EulerDiscreteScheduler(**SDXL_BETAS))
    theirs.set_progress_bar_config(disable=True)
    return Both(load_engine(config, path, device="cpu", dtype="float32"), theirs)


def plan_of(**changes: Any) -> Plan:
    given = {
        "prompt": "a red apple on a blue table, 35mm",
        "seed": 5,
        "steps": STEPS,
        "size": (64, 64),
        "original_size": (512, 384),
        "crop_coords_top_left": (8, 16),
        "target_size": (96, 64),
        **changes,
    }
    return Plan(model="tiny-base", file="tiny.safetensors", **given)


def diffusers_latent(pipeline: StableDiffusionXLPipeline, plan: Plan) -> Tensor:
    """The same picture by diffusers: its own noise for the seed, timesteps of the published discretization."""
    result = pipeline(
        prompt=plan.prompt,
        prompt_2=plan.prompt_2,
        negative_prompt=plan.negative or None,
        negative_prompt_2=plan.negative_2,
        height=plan.size[0],
        width=plan.size[1],
        original_size=plan.original_size,
        crops_coords_top_left=plan.crop_coords_top_left,
        target_size=plan.target_size,
        timesteps=list(legacy_ddpm_timesteps(plan.steps)),
        guidance_scale=plan.guider.scale,
        generator=torch.Generator().manual_seed(plan.seed),
        output_type="latent",
    )
    latent: Tensor = result.images
    return latent


def our_latent(engine: Engine, plan: Plan) -> Tensor:
    *_, last = sample(engine, [plan])
    return last.x


class AncestralWithTimesteps(EulerAncestralDiscreteScheduler):
    """diffusers' scheduler, told its timesteps; alone it can only space them itself."""

    def set_timesteps(self, timesteps: list[int], device: Any = None) -> None:
        table = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, dtype=torch.float32)
        self.sigmas = torch.cat([table[timesteps], torch.zeros(1)])
        self._step_index = None


SCHEDULERS = {
    "euler": EulerDiscreteScheduler(**SDXL_BETAS, timestep_spacing="leading", steps_offset=1),
    "dpmpp_2m": DPMSolverMultistepScheduler(**SDXL_BETAS, algorithm_type="dpmsolver++", solver_order=2),
    "euler_ancestral": AncestralWithTimesteps(**SDXL_BETAS, timestep_spacing="leading", steps_offset=1),
}


@pytest.mark.parametrize("sampler", list(SCHEDULERS))
def test_thirty_guided_steps_end_in_the_same_latent(both: Both, sampler: str) -> None:
    both.theirs.scheduler = SCHEDULERS[sampler]
    plan = plan_of(sampler=SamplerConfig(name=sampler))
    assert relative_error(our_latent(both.ours, plan), diffusers_latent(both.theirs, plan)) <= LATENT_TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"negative": "blurry, text"},
        {"prompt_2": "drawn in pencil", "negative": "photo", "negative_2": "colours"},
        {"prompt": "a very long story " * 30},
        {"size": (72, 104)},
        {"size": (8, 200)},
    ],
    ids=["negative", "four texts", "too long", "odd latent", "one row"],
)
def test_words_and_sizes_mean_the_same(both: Both, changes: dict[str, Any]) -> None:
    both.theirs.scheduler = SCHEDULERS["euler"]
    plan = plan_of(steps=4, **changes)
    assert relative_error(our_latent(both.ours, plan), diffusers_latent(both.theirs, plan)) <= LATENT_TOLERANCE


def test_diffusers_walks_through_our_sigmas_and_timesteps() -> None:
    plan = plan_of()
    by_timestep, by_sigma = EulerDiscreteScheduler(**SDXL_BETAS), EulerDiscreteScheduler(**SDXL_BETAS)
    by_timestep.set_timesteps(timesteps=list(legacy_ddpm_timesteps(STEPS)))
    by_sigma.set_timesteps(sigmas=list(plan.sigmas()))
    # Its table comes from betas in float32, ours from betas in float64 as the original's: 3e-6 apart.
    np.testing.assert_allclose(by_timestep.sigmas, plan.sigmas(), rtol=1e-5)
    np.testing.assert_allclose(by_sigma.sigmas, plan.sigmas(), rtol=1e-6)
    np.testing.assert_allclose(by_sigma.timesteps, legacy_ddpm_timesteps(STEPS), atol=0.01)


def test_our_levels_lie_on_the_table_so_that_quantizing_changes_nothing(both: Both) -> None:
    table = set(both.ours.denoiser.table.tolist())
    assert set(plan_of().sigmas()) - {0.0} <= table


def test_conditioning_is_that_of_the_reference_towers(both: Both) -> None:
    plan = plan_of(negative="blurry")
    prompts = condition(both.ours, [plan], uncond=True)
    (cond,), uncond = prompts.parts, prompts.uncond
    assert uncond is not None
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = both.theirs.encode_prompt(
            plan.prompt, negative_prompt=plan.negative, device="cpu"
        )
        numbers = torch.tensor([*plan.original_size, *plan.crop_coords_top_left, *plan.target_size]).float()
        sizes = both.theirs.unet.add_time_proj(numbers).flatten()[None]
    for ours, tokens, text in ((cond, embeds, pooled), (uncond, negative, negative_pooled)):
        assert relative_error(ours.crossattn, tokens) <= NETWORK_TOLERANCE
        assert relative_error(ours.vector, torch.cat([text, sizes], dim=1)) <= NETWORK_TOLERANCE


def test_one_call_of_the_refiner_predicts_the_same(tmp_path: Path) -> None:
    config, tensors = tiny_config("refiner"), tiny_tensors("refiner")
    path = write_tiny_checkpoint(tmp_path / "refiner.safetensors", "refiner")
    engine = load_engine(config, path, device="cpu", dtype="float32")
    plan = plan_of(empty_negative="encode", aesthetic_score=7.5, negative_aesthetic_score=1.0)
    prompts = condition(engine, [plan], uncond=True)
    (cond,), uncond = prompts.parts, prompts.uncond
    assert uncond is not None
    unet, tower, tokens = network(tensors, config), big_g(tensors, config, 0), tokenizer("!")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for ours, prompt, score in ((cond, plan.prompt, 7.5), (uncond, "", 1.0)):
        with torch.no_grad():
            ids = tokens(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
            text = tower(ids, output_hidden_states=True)
            theirs = unet(
                x,
                150,
                encoder_hidden_states=text.hidden_states[-2],
                added_cond_kwargs={
                    "text_embeds": text.text_embeds,
                    "time_ids": torch.tensor([[*plan.original_size, *plan.crop_coords_top_left, score]]),
                },
            ).sample
            mine = engine.predict(x, torch.tensor([150.0]), ours)
        assert relative_error(mine, theirs) <= NETWORK_TOLERANCE


def test_the_same_latent_decodes_to_the_same_picture(both: Both) -> None:
    latent = torch.randn(1, 4, 9, 13, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = both.theirs.vae.decode(latent / both.theirs.vae.config.scaling_factor).sample
        ours = both.ours.first_stage.decode(latent)
    assert relative_error(ours, theirs) <= NETWORK_TOLERANCE
    levels = both.theirs.image_processor.postprocess(theirs, output_type="np")[0] * 255
    assert np.abs(decode(both.ours, latent)[0] - levels).max() <= 0.51
