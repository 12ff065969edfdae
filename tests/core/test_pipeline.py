import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_reporter import Recorder
from support_tiny import OPEN_CLIP_WIDTH, tiny_config, write_tiny_checkpoint
from torch import Tensor

from sdxl_core.config import DenoiserConfig, DiscretizationConfig, SamplerConfig
from sdxl_core.devices import free_memory_bytes
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import MemoryExhaustedError, NumericsError, UsageError
from sdxl_core.first_stage import least_memory_bytes
from sdxl_core.guider_config import (
    GUIDANCE_METHODS,
    ApgConfig,
    CfgZeroStarConfig,
    DynamicThresholdingConfig,
    FdgConfig,
    FreeUConfig,
    GuiderConfig,
    IntervalConfig,
    PagConfig,
    PerpNegConfig,
    RescaleConfig,
    SagConfig,
    SegConfig,
    TcfgConfig,
)
from sdxl_core.passes import apply_passes
from sdxl_core.pipeline import condition, decode, picture_noise, refine, sample, walk
from sdxl_core.plan import Plan
from sdxl_core.refiner import RefinerPlan
from sdxl_core.types import Conditioning, Step
from sdxl_core.work import network_rows

ROOT = Path(__file__).parents[2]

METHODS: dict[str, Any] = {
    "perp_neg": PerpNegConfig(),
    "tcfg": TcfgConfig(),
    "cfg_zero_star": CfgZeroStarConfig(),
    "apg": ApgConfig(),
    "fdg": FdgConfig(),
    "dynamic_thresholding": DynamicThresholdingConfig(mimic=2.0),
    "pag": PagConfig(),
    "seg": SegConfig(),
    "sag": SagConfig(),
    "rescale": RescaleConfig(),
    "freeu": FreeUConfig(),
}
"""Every way of guidance, so that it shows in a small picture."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return write_tiny_checkpoint(folder / "base.safetensors")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32")


@pytest.fixture
def spoilable(checkpoint: Path) -> Engine:
    """An engine of one test's own."""
    return load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32")


def plan_of(**changes: Any) -> Plan:
    size = changes.pop("size", (32, 40))
    given = {"prompt": "a cat", "seed": 1, "steps": 4, "original_size": size, "target_size": size, **changes}
    return Plan(model="tiny-base", file="tiny.safetensors", size=size, **given)


def latents(engine: Engine, *plans: Plan) -> Tensor:
    *_, last = sample(engine, plans)
    return last.x


def both_sides(engine: Engine, *plans: Plan) -> tuple[Conditioning, Conditioning | None]:
    prompts = condition(engine, plans, uncond=True)
    return prompts.parts[0], prompts.uncond


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


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


def test_a_cfg_pp_sampler_is_told_the_unconditional_prediction_at_scale_1_too(engine: Engine) -> None:
    once = GuiderConfig(scale=1.0)
    plain, form = (plan_of(guider=once, sampler=SamplerConfig(name=name)) for name in ("euler", "euler_cfg_pp"))
    assert relative(latents(engine, form), latents(engine, plain)) > 1e-3
    none = GuiderConfig(name="identity")
    plain, form = (plan_of(guider=none, sampler=SamplerConfig(name=name)) for name in ("euler", "euler_cfg_pp"))
    assert relative(latents(engine, form), latents(engine, plain)) < 1e-6


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


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"prompt": "a dog"},
        {"prompt_2": "a dog"},
        {"negative": "blurry"},
        {"negative_2": "blurry"},
        {"guider": GuiderConfig(scale=2.0)},
        {"guider": GuiderConfig(interval=IntervalConfig(low=0.5, high=5.0))},
        *({"guider": GuiderConfig(**{name: METHODS[name]})} for name in METHODS if name != "perp_neg"),
        {"original_size": (8, 8)},
        {"target_size": (8, 8)},
        {"crop_coords_top_left": (8, 8)},
        {"discretization": DiscretizationConfig(name="edm")},
        {"sampler": SamplerConfig(name="heun")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_a_plan_says_reaches_the_picture(engine: Engine, change: dict[str, Any]) -> None:
    assert relative(latents(engine, plan_of(**change)), latents(engine, plan_of())) > 0.01


def test_an_empty_negative_is_zeros_for_the_base(engine: Engine) -> None:
    cond, uncond = both_sides(engine, plan_of())
    assert uncond is not None
    assert not uncond.crossattn.any()
    assert not uncond.vector[:, :OPEN_CLIP_WIDTH].any()
    assert torch.equal(uncond.vector[:, OPEN_CLIP_WIDTH:], cond.vector[:, OPEN_CLIP_WIDTH:])


def test_only_the_rows_without_a_negative_are_zeros(engine: Engine) -> None:
    _, uncond = both_sides(engine, plan_of(), plan_of(negative="blurry"), plan_of())
    assert uncond is not None
    assert [bool(row.any()) for row in uncond.crossattn] == [False, True, False]
    cond, _ = both_sides(engine, plan_of(prompt="blurry"))
    assert torch.equal(uncond.crossattn[1], cond.crossattn[0])


def test_the_refiner_always_encodes_the_negative_and_reads_both_scores(folder: Path) -> None:
    path = write_tiny_checkpoint(folder / "refiner.safetensors", "refiner")
    engine = load_engine(tiny_config("refiner"), path, device="cpu", dtype="float32")
    plan = plan_of(empty_negative="encode")
    cond, uncond = both_sides(engine, plan)
    assert uncond is not None
    assert uncond.crossattn.all(dim=2).any()
    differs = (uncond.vector != cond.vector)[0, OPEN_CLIP_WIDTH:]
    assert not differs[:-32].any()
    assert differs[-32:].any()
    assert latents(engine, plan).isfinite().all()


def test_no_way_of_guidance_is_left_out_here() -> None:
    assert set(METHODS) == set(GUIDANCE_METHODS)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2s_ancestral", "euler_ancestral_cfg_pp"])
@pytest.mark.parametrize(
    "guider",
    [
        GuiderConfig(),
        GuiderConfig(scale=1.0),
        GuiderConfig(interval=IntervalConfig(low=0.5, high=5.0), pag=PagConfig(), sag=SagConfig()),
        GuiderConfig(name="identity", seg=SegConfig(), freeu=FreeUConfig()),
        GuiderConfig(cfg_zero_star=CfgZeroStarConfig(zero_init=1), perp_neg=PerpNegConfig()),
    ],
    ids=["plain", "scale-1", "interval", "identity", "zero-init"],
)
def test_network_rows_are_as_many_as_the_plan_says(engine: Engine, sampler: str, guider: GuiderConfig) -> None:
    rows: list[int] = []
    plans = [plan_of(sampler=SamplerConfig(name=sampler), guider=guider, seed=seed) for seed in (1, 2)]
    handle = engine.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        latents(engine, *plans)
    finally:
        handle.remove()
    assert sum(rows) == 2 * (network_rows(plans[0]) or 0)


def test_prompts_joined_by_and_are_in_the_picture_with_their_weights(engine: Engine) -> None:
    one, two = plan_of(prompt="a cat AND a red hat :0.5"), plan_of(prompt="a dog :2 AND a ball", seed=2)
    together = latents(engine, one, two)
    for row, plan in enumerate((one, two)):
        assert relative(together[row], latents(engine, plan)[0]) < 1e-5
    for other in ("a cat", "a cat AND a red hat", "a red hat :0.5 AND a hen"):
        assert relative(latents(engine, plan_of(prompt=other)), together[:1]) > 0.01
    swapped = latents(engine, plan_of(prompt="a red hat :0.5 AND a cat"))
    assert relative(swapped, together[:1]) < 1e-5
    halves = latents(engine, plan_of(prompt="a cat :0.5 AND a cat :0.5"))
    assert relative(halves, latents(engine, plan_of())) < 1e-5


def test_a_stage_that_the_network_lacks_is_refused_where_a_plan_comes_from_elsewhere(engine: Engine) -> None:
    plan = plan_of(guider=GuiderConfig(pag=PagConfig(stages=("input_blocks.1",))))
    with pytest.raises(UsageError, match=r"'input_blocks\.1' is no stage of the network with attention"):
        latents(engine, plan)


def test_every_way_of_guidance_runs_in_half_precision(checkpoint: Path) -> None:
    half = load_engine(tiny_config(), checkpoint, device="cpu", dtype="bfloat16")
    guider = GuiderConfig(**METHODS | {"seg": SegConfig(blur=1.5)})
    plan = plan_of(guider=guider, steps=2, prompt="a cat AND a hat :0.5", negative="blurry")
    assert latents(half, plan).isfinite().all()


def test_perp_neg_starts_from_the_empty_prompt(engine: Engine) -> None:
    guider = GuiderConfig(perp_neg=PerpNegConfig())
    prompts = condition(engine, [plan_of(guider=guider, negative="blurry")], uncond=True)
    assert prompts.uncond is not None
    assert prompts.negative is not None
    assert not prompts.uncond.crossattn.any()
    assert prompts.negative.crossattn.any()
    plain = latents(engine, plan_of())
    assert relative(latents(engine, plan_of(guider=guider)), plain) < 1e-5  # nothing to keep away from
    assert relative(latents(engine, plan_of(guider=guider, negative="blurry")), plain) > 0.01


@pytest.mark.parametrize("guider", [GuiderConfig(name="identity"), GuiderConfig(scale=1.0)])
def test_without_guidance_the_negative_side_is_not_made(engine: Engine, guider: GuiderConfig) -> None:
    assert condition(engine, [plan_of(guider=guider)], uncond=False).uncond is None
    with_negative = latents(engine, plan_of(guider=guider, negative="blurry"))
    assert torch.equal(with_negative, latents(engine, plan_of(guider=guider)))


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


def test_pictures_are_the_decoded_latents_in_8_bits(engine: Engine) -> None:
    x = latents(engine, plan_of(), plan_of(seed=2)) / 20
    pictures = decode(engine, x)
    with torch.no_grad():
        wanted = engine.first_stage.decode(x).clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert len(pictures) == 2
    for picture, exact in zip(pictures, wanted, strict=True):
        assert picture.shape == (32, 40, 3)
        assert picture.dtype == np.uint8
        assert picture.flags["C_CONTIGUOUS"]
        assert np.abs(picture - (exact + 1) * 127.5).max() <= 0.501
    assert 5 < pictures[0].std() < 120


def test_the_ends_of_the_range_are_black_and_white(spoilable: Engine) -> None:
    bias = spoilable.first_stage.get_parameter("decoder.conv_out.bias")
    x = torch.zeros(1, 4, 2, 2)
    with torch.no_grad():
        spoilable.first_stage.get_parameter("decoder.conv_out.weight").zero_()
        for value, level in ((-1.0, 0), (0.0, 128), (1.0, 255), (-9.0, 0), (9.0, 255)):
            bias.fill_(value)
            assert (decode(spoilable, x)[0] == level).all()


def test_bfloat16_decodes_to_nearly_the_same_picture(checkpoint: Path, engine: Engine) -> None:
    half = load_engine(tiny_config(), checkpoint, device="cpu", dtype="bfloat16")
    x = latents(engine, plan_of()) / 20
    difference = np.abs(decode(half, x)[0].astype(int) - decode(engine, x)[0])
    assert difference.mean() < 1.5  # levels of 255


def test_running_out_of_memory_is_one_error_and_no_crash(checkpoint: Path) -> None:
    code = f"""
import resource, sys
sys.path.insert(0, "tests")
import torch
from support_tiny import tiny_config
from sdxl_core import Plan, SdxlError, decode, load_engine, sample
engine = load_engine(tiny_config(), {str(checkpoint)!r}, device="cpu", dtype="float32")
decode(engine, torch.zeros(1, 4, 8, 8))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000, resource.RLIM_INFINITY))
size = dict(size=(768, 768), original_size=(8, 8), target_size=(8, 8))
plan = Plan(model="m", file="f", prompt="a cat", seed=0, steps=1, **size)
for work in (lambda: list(sample(engine, [plan])), lambda: decode(engine, torch.zeros(1, 4, 96, 96))):
    try:
        work()
    except SdxlError as error:
        print(error.exit_code, error.message.split(":")[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "5 not enough memory for a picture of 768x768",
        "5 out of memory while decoding a picture",
    ], done.stderr


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


def test_decoding_reports_every_picture(engine: Engine) -> None:
    reporter = Recorder()
    decode(engine, torch.zeros(2, 4, 2, 2), reporter=reporter)
    assert reporter.tasks == [["decoding", 2, "pictures", 2, True]]


def test_a_second_batch_of_the_same_prompts_runs_no_text_tower(engine: Engine) -> None:
    plans = [plan_of(prompt="a hen", negative="fog", seed=seed) for seed in (1, 2)]
    first = condition(engine, plans[:1], uncond=True)
    runs: list[int] = []
    hooks = [tower.register_forward_hook(lambda *_: runs.append(1)) for tower in engine.conditioner.towers]
    second = condition(engine, plans, uncond=True)
    other = condition(engine, [plan_of(prompt="a hen", size=(64, 64))], uncond=False)
    for hook in hooks:
        hook.remove()
    assert runs == []
    assert torch.equal(second.parts[0].crossattn[:1], first.parts[0].crossattn)
    assert not torch.equal(other.parts[0].vector, first.parts[0].vector)
