"""`compat = "diffusers"` against diffusers' own pipeline: its schedulers space the timesteps themselves here."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from support_chain import SDXL_BETAS, chain_parts
from support_networks import relative_error
from support_tiny import tiny_config, tiny_tensors, write_tiny_checkpoint
from torch import Tensor

from sdxl_core.checkpoints.markers import Markers, adapt_model
from sdxl_core.config import ModelConfig, RecipeConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import sample
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import Preset

STEPS, COUNT, SEED = 7, 2, 5
PROMPT = "a red apple on a blue table, 35mm"
TOLERANCE = 1e-4  # relative, after all steps; seen are 1e-6 to 4e-6

PUBLISHED: dict[str, Any] = {**SDXL_BETAS, "timestep_spacing": "leading", "steps_offset": 1}
SPACED: dict[str, dict[str, Any]] = {
    spacing: {**PUBLISHED, "timestep_spacing": spacing} for spacing in ("leading", "trailing", "linspace")
}
CASES = {
    **{f"euler {s}": ("euler", s, EulerDiscreteScheduler(**SPACED[s])) for s in SPACED},
    "euler karras": ("euler", "karras", EulerDiscreteScheduler(**PUBLISHED, use_karras_sigmas=True)),
    "euler exponential": ("euler", "exponential", EulerDiscreteScheduler(**PUBLISHED, use_exponential_sigmas=True)),
    "euler beta": ("euler", "beta", EulerDiscreteScheduler(**PUBLISHED, use_beta_sigmas=True)),
    **{
        f"euler_ancestral {s}": ("euler_ancestral", s, EulerAncestralDiscreteScheduler(**SPACED[s]))
        for s in ("leading", "trailing")
    },
    "heun karras": ("heun", "karras", HeunDiscreteScheduler(**PUBLISHED, use_karras_sigmas=True)),
    **{f"dpmpp_2m {s}": ("dpmpp_2m", s, DPMSolverMultistepScheduler(**SPACED[s])) for s in SPACED},
    "lms leading": ("lms", "leading", LMSDiscreteScheduler(**PUBLISHED)),
    "ddim leading": ("ddim", "leading", DDIMScheduler(**PUBLISHED, clip_sample=False)),
    "dpmpp_2m karras": ("dpmpp_2m", "karras", DPMSolverMultistepScheduler(**PUBLISHED, use_karras_sigmas=True)),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("chain") / "tiny.safetensors")
    return load_engine(tiny_config(), path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs() -> StableDiffusionXLPipeline:
    parts = chain_parts(tiny_tensors(), tiny_config())
    pipeline = StableDiffusionXLPipeline(**parts, scheduler=EulerDiscreteScheduler(**PUBLISHED))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plans_of(
    sampler: str, schedule: str, compat: str | None = "diffusers", model: ModelConfig | None = None, **options: float
) -> list[Plan]:
    recipe = {"compat": compat, "steps": STEPS, "guider": {"scale": 4.0}}
    recipe |= {"sampler": {"name": sampler}, "discretization": {"name": schedule, **options}}
    preset = Preset("tiny", "", model or tiny_config(), RecipeConfig.model_validate(recipe), {})
    return build_plan(preset, PROMPT, seed=SEED).pictures(COUNT)


def our_latents(engine: Engine, plans: list[Plan]) -> Tensor:
    *_, last = sample(engine, plans)
    return last.x


def diffusers_latents(pipeline: StableDiffusionXLPipeline) -> Tensor:
    """As a user asks for them: one generator, no negative prompt, sizes as they come."""
    latents: Tensor = pipeline(
        prompt=PROMPT,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        num_images_per_prompt=COUNT,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    return latents


@pytest.mark.parametrize("case", CASES)
def test_the_same_words_and_seed_give_the_same_latents(
    ours: Engine, theirs: StableDiffusionXLPipeline, case: str
) -> None:
    sampler, schedule, theirs.scheduler = CASES[case]
    expected = diffusers_latents(theirs)
    assert relative_error(our_latents(ours, plans_of(sampler, schedule)), expected) <= TOLERANCE


OTHERS: dict[str, tuple[str, dict[str, float], Any]] = {
    "v": ("trailing", {}, EulerDiscreteScheduler(**SPACED["trailing"], prediction_type="v_prediction")),
    "v_ztsnr_diffusers": (
        "trailing",
        {},
        EulerDiscreteScheduler(**SPACED["trailing"], prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ),
    "edm": ("edm", {"rho": 7.0}, EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)),
    "edm_v": (
        "edm",
        {"rho": 7.0},
        EDMEulerScheduler(sigma_min=0.002, sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_the_network_predicts(ours: Engine, theirs: StableDiffusionXLPipeline, name: Any) -> None:
    schedule, options, theirs.scheduler = OTHERS[name]
    model, _ = adapt_model(tiny_config(), Markers(), name)
    engine = replace(ours, config=model, denoiser=Denoiser(model.denoiser))
    latents = our_latents(engine, plans_of("euler", schedule, model=model, **options))
    assert relative_error(latents, diffusers_latents(theirs)) <= TOLERANCE


def test_without_it_the_pictures_are_others(ours: Engine, theirs: StableDiffusionXLPipeline) -> None:
    theirs.scheduler = EulerDiscreteScheduler(**PUBLISHED, use_karras_sigmas=True)
    own = plans_of("euler", "karras", compat=None)
    assert relative_error(our_latents(ours, own), diffusers_latents(theirs)) > 1000 * TOLERANCE
