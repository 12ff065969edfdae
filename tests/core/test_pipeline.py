"""From plans to latents: batches, walks that are cut and gone on with, and what ends them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_pipeline import latents, plan_of, relative
from support_tiny import tiny_config
from torch import Tensor

from sdxl_core.config import DenoiserConfig, SamplerConfig
from sdxl_core.devices import free_memory_bytes
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import MemoryExhaustedError, NumericsError, UsageError
from sdxl_core.first_stage import least_memory_bytes
from sdxl_core.guider_config import GuiderConfig, IntervalConfig
from sdxl_core.passes import apply_passes
from sdxl_core.pipeline import decode, picture_noise, refine, sample, walk
from sdxl_core.plan import Plan
from sdxl_core.refiner import RefinerPlan
from sdxl_core.types import Step


def test_a_run_yields_its_steps_and_ends_without_noise(engine: Engine) -> None:
    plan = plan_of()
    steps = list(sample(engine, [plan]))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert tuple(step.sigma for step in steps) == plan.sigmas()[1:]
    assert all(step.x.shape == (1, 4, 4, 5) and step.x.dtype == torch.float32 for step in steps)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_progress_bar_of_model_calls_reaches_its_end(engine: Engine, sampler: str) -> None:
    plan = plan_of(sampler=SamplerConfig(name=sampler))
    calls = sum(step.calls for step in sample(engine, [plan]))
    assert plan.model_calls() == (None if SAMPLERS[sampler].calls is None else calls)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde"])
def test_a_picture_is_the_same_alone_and_in_any_batch(engine: Engine, sampler: str) -> None:
    plans = [
        plan_of(sampler=SamplerConfig(name=sampler), **changes)
        for changes in (
            {"seed": 3},
            {"seed": 4, "negative": "blurry"},
            {"seed": 5, "prompt": "a red apple", "prompt_2": "drawn"},
            {"seed": 3, "crop_coords_top_left": (16, 0), "original_size": (8, 8)},
        )
    ]
    together = latents(engine, *plans)
    for row, plan in enumerate(plans):
        assert relative(together[row], latents(engine, plan)[0]) < 1e-5


def test_the_same_plan_gives_the_same_latent_bit_for_bit(engine: Engine) -> None:
    plan = plan_of(sampler=SamplerConfig(name="euler_ancestral"))
    assert torch.equal(latents(engine, plan), latents(engine, plan))


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_a_walk_cut_anywhere_and_gone_on_is_the_whole_walk_bit_for_bit(engine: Engine, sampler: str, cut: int) -> None:
    plans = [plan_of(sampler=SamplerConfig(name=sampler), seed=seed) for seed in (1, 2)]
    sigmas, noise = plans[0].sigmas(), picture_noise(engine, plans)
    *_, first = walk(engine, plans, noise.start(sigmas[0]), sigmas[: cut + 1], noise)
    assert first.sigma == sigmas[cut]
    *_, last = walk(engine, plans, first.x, sigmas[cut:], noise)
    assert torch.equal(last.x, latents(engine, *plans))


def by_itself(mode: str, **changes: Any) -> Plan:
    """A plan whose second model is its first."""
    plan = plan_of(**changes)
    second = RefinerPlan(model=plan.model, file=plan.file, mode=mode, empty_negative="zeros", denoiser=plan.denoiser)
    return plan.model_copy(update={"refiner": second})


def refined_latents(engine: Engine, *plans: Plan) -> Tensor:
    noise = picture_noise(engine, plans)
    *_, first = sample(engine, plans, noise)
    *_, last = refine(engine, plans, first.x, noise)
    return last.x


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_ancestral"])
def test_handing_over_to_the_same_model_is_the_single_run_bit_for_bit(engine: Engine, sampler: str, step: int) -> None:
    config = SamplerConfig(name=sampler)
    plans = [by_itself(f"share@step={step}", sampler=config, seed=seed) for seed in (1, 2)]
    wanted = latents(engine, *(plan_of(sampler=config, seed=seed) for seed in (1, 2)))
    assert torch.equal(refined_latents(engine, *plans), wanted)


def test_guidance_counts_the_steps_of_the_whole_walk_on_both_sides_of_the_switch(engine: Engine) -> None:
    interval = IntervalConfig(unit="step", low=2, high=3)
    guider = GuiderConfig(scale=6.0, interval=interval)
    wanted = latents(engine, plan_of(guider=guider))
    assert torch.equal(refined_latents(engine, by_itself("share@step=2", guider=guider)), wanted)


def test_sdedit_noises_the_finished_latent_to_its_strength(engine: Engine) -> None:
    plan = by_itself("sdedit@0.5")
    noise = picture_noise(engine, [plan])
    *_, first = sample(engine, [plan], noise)
    assert torch.equal(first.x, latents(engine, plan_of()))
    x, sigmas = first.x + plan.sigmas()[2] * noise(), plan.sigmas()[2:]
    *_, wanted = walk(engine, [plan_of()], x, sigmas, noise)
    assert torch.equal(refined_latents(engine, plan), wanted.x)


def test_calls_of_both_models_reach_the_end_of_the_bar(engine: Engine) -> None:
    for mode in ("share@step=3", "sdedit@0.5"):
        plan = by_itself(mode, sampler=SamplerConfig(name="heun"))
        noise = picture_noise(engine, [plan])
        steps = list(sample(engine, [plan], noise))
        steps += refine(engine, [plan], steps[-1].x, noise)
        assert sum(step.calls for step in steps) == plan.model_calls()


def test_a_walk_from_a_clean_latent_moves_about_as_far_as_its_noise(engine: Engine) -> None:
    plan = plan_of(guider=GuiderConfig(name="identity"), steps=8)
    clean = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    moved = []
    for first in (3, 5, 7):
        sigmas, noise = plan.sigmas()[first:], picture_noise(engine, [plan])
        *_, last = walk(engine, [plan], clean + sigmas[0] * noise(), sigmas, noise)
        moved.append(relative(last.x, clean) / sigmas[0])
    assert all(0.1 < distance < 3 for distance in moved), moved


def test_latents_of_another_size_than_the_plans_are_a_mistake_of_the_caller(engine: Engine) -> None:
    plan = plan_of()
    with pytest.raises(ValueError, match=r"x is \(1, 4, 4, 4\) and the plans are for \(1, 4, 4, 5\)"):
        walk(engine, [plan], torch.zeros(1, 4, 4, 4), plan.sigmas(), picture_noise(engine, [plan]))


def test_bfloat16_follows_float32(checkpoint: Path, engine: Engine) -> None:
    half = load_engine(tiny_config(), checkpoint, device="cpu", dtype="bfloat16")
    plan = plan_of(guider=GuiderConfig(name="identity"))  # guidance multiplies the rounding by its scale
    assert relative(latents(half, plan), latents(engine, plan)) < 0.02


def a_started_run(engine: Engine) -> Iterator[Step]:
    run = sample(engine, [plan_of()])
    next(run)
    return run


def test_an_abandoned_run_leaves_no_mode_behind(engine: Engine) -> None:
    run = a_started_run(engine)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    del run
    assert not torch.is_inference_mode_enabled()
    assert (torch.ones(1, requires_grad=True) * 2).requires_grad


def test_two_runs_may_alternate(engine: Engine) -> None:
    first, second = a_started_run(engine), a_started_run(engine)
    pairs = list(zip(first, second, strict=True))
    assert len(pairs) == 3
    assert all(torch.equal(a.x, b.x) for a, b in pairs)


def test_a_latent_that_is_not_finite_stops_the_run_and_names_the_seed(spoilable: Engine) -> None:
    with torch.no_grad():
        spoilable.network.get_parameter("out.2.bias").fill_(torch.nan)
    with pytest.raises(NumericsError, match="latent of seed 7, 8 is not finite after step 1 of 4") as caught:
        list(sample(spoilable, [plan_of(seed=7), plan_of(seed=8)]))
    assert "damaged" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "plans",
    [
        [],
        [plan_of(), plan_of(steps=5)],
        [plan_of(), plan_of(size=(32, 32))],
        [plan_of(denoiser=DenoiserConfig(scaling="v"))],
    ],
    ids=["none", "steps", "size", "denoiser"],
)
def test_plans_that_cannot_be_run_together_are_a_mistake_of_the_caller(engine: Engine, plans: list[Plan]) -> None:
    with pytest.raises(ValueError, match=r"batch|denoiser"):
        sample(engine, plans)


def test_a_size_that_the_first_stage_cannot_divide_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="does not divide by 8"):
        sample(engine, [plan_of(size=(30, 32))])


def test_a_picture_larger_than_memory_is_refused_before_the_first_step(engine: Engine) -> None:
    size = (16384, 16384)
    assert least_memory_bytes(engine.first_stage, size, "whole") > (free_memory_bytes(engine.device) or 0)
    with pytest.raises(MemoryExhaustedError, match="not enough memory for a picture of 16384x16384"):
        sample(engine, [plan_of(size=size, decoding="whole")])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cuda_draws_what_the_cpu_draws(checkpoint: Path, engine: Engine, dtype: str) -> None:
    cuda = load_engine(tiny_config(), checkpoint, device="cuda", dtype=dtype)
    plan = plan_of(guider=GuiderConfig(name="identity"))
    x = latents(cuda, plan)
    assert cuda.first_stage_dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)
    assert relative(x.cpu(), latents(engine, plan)) < 0.02
    difference = np.abs(decode(cuda, x / 20)[0].astype(int) - decode(engine, x.cpu() / 20)[0])
    assert difference.mean() < 1.5


@pytest.mark.gpu
def test_on_cuda_a_latent_that_is_not_finite_names_its_step_and_is_not_handed_on(checkpoint: Path) -> None:
    cuda = apply_passes(load_engine(tiny_config(), checkpoint, device="cuda", dtype="float16"))
    run = sample(cuda, [plan_of(seed=7), plan_of(seed=8)])
    had = [next(run)]  # the second step is on its way
    with torch.inference_mode():
        cuda.network.get_parameter("network.out.2.bias").fill_(torch.nan)
    had.append(next(run))
    assert all(bool(step.x.isfinite().all()) for step in had)
    with pytest.raises(NumericsError, match="latent of seed 7, 8 is not finite after step 3 of 4"):
        next(run)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "uni_pc"])
def test_on_cuda_recorded_steps_give_the_picture_of_launched_ones_bit_for_bit(checkpoint: Path, sampler: str) -> None:
    def load(*, recorded: bool) -> Engine:
        names = [name for name in apply_passes(loaded()).passes if recorded or name != "cuda_graph"]
        return apply_passes(loaded(), names)

    def loaded() -> Engine:
        return load_engine(tiny_config(), checkpoint, device="cuda", dtype="float16")

    recorded, launched = load(recorded=True), load(recorded=False)
    for prompts in (["a cat"], ["a dog", "a hen"], ["a cow"], ["a cat"]):
        plans = [plan_of(prompt=prompt, steps=6, sampler=SamplerConfig(name=sampler)) for prompt in prompts]
        assert torch.equal(latents(recorded, *plans), latents(launched, *plans))
