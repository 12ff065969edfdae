"""That what a plan says of words and guidance reaches the network, and what it costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support_pipeline import latents, plan_of, relative
from support_tiny import OPEN_CLIP_WIDTH, tiny_config, write_tiny_checkpoint

from sdxl_core.config import DiscretizationConfig, SamplerConfig
from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import UsageError
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
from sdxl_core.pipeline import condition
from sdxl_core.plan import Plan
from sdxl_core.types import Conditioning
from sdxl_core.work import network_rows

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


def both_sides(engine: Engine, *plans: Plan) -> tuple[Conditioning, Conditioning | None]:
    prompts = condition(engine, plans, uncond=True)
    return prompts.parts[0], prompts.uncond


def test_a_cfg_pp_sampler_is_told_the_unconditional_prediction_at_scale_1_too(engine: Engine) -> None:
    once = GuiderConfig(scale=1.0)
    plain, form = (plan_of(guider=once, sampler=SamplerConfig(name=name)) for name in ("euler", "euler_cfg_pp"))
    assert relative(latents(engine, form), latents(engine, plain)) > 1e-3
    none = GuiderConfig(name="identity")
    plain, form = (plan_of(guider=none, sampler=SamplerConfig(name=name)) for name in ("euler", "euler_cfg_pp"))
    assert relative(latents(engine, form), latents(engine, plain)) < 1e-6


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


def test_the_refiner_always_encodes_the_negative_and_reads_both_scores(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "refiner.safetensors", "refiner")
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
