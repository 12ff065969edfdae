"""What a plan is said to take, against what PyTorch counts while it is run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_tiny import tiny_config, write_tiny_checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdxl_core.canvas import Canvas
from sdxl_core.config import SamplerConfig, SourceConfig
from sdxl_core.engine import Engine, load_engine
from sdxl_core.from_pictures import sample_from
from sdxl_core.guider_config import CfgZeroStarConfig, GuiderConfig, IntervalConfig, PagConfig, PerpNegConfig
from sdxl_core.pipeline import decode, picture_noise, refine, sample
from sdxl_core.plan import Plan
from sdxl_core.refiner import RefinerPlan
from sdxl_core.source import Source, SourceFile
from sdxl_core.work import plan_work

SIZE = (32, 48)
PAG = PagConfig(stages=("middle_block", "output_blocks.3"))
REFINED = RefinerPlan(model="tiny-refiner", file="r.safetensors", mode="share@0.5")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder: Path = tmp_path_factory.mktemp("work")
    kinds: Any = ("base", "refiner", "inpaint")
    return {
        kind: load_engine(
            tiny_config(kind),
            write_tiny_checkpoint(folder / f"{kind}.safetensors", kind),
            device="cpu",
            dtype="float32",
        )
        for kind in kinds
    }


@pytest.fixture
def engines(loaded: dict[str, Engine]) -> dict[str, Engine]:
    """With nothing encoded yet: a prompt that an engine remembers takes no work."""
    return {kind: replace(engine) for kind, engine in loaded.items()}


def plan_of(**changes: Any) -> Plan:
    given = {"prompt": "a cat", "seed": 1, "steps": 3, "original_size": SIZE, "target_size": SIZE, **changes}
    return Plan(**{"model": "tiny-base", "file": "tiny.safetensors", "size": SIZE, **given})


def counted(run: Any) -> int:
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops())


def said(plan: Plan, engines: dict[str, Engine], kind: str = "base") -> int:
    parts = plan_work(plan, engines[kind].config, engines["refiner"].config)
    return sum(part.work.total for part in parts if part.work is not None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative": "a dog", "sampler": SamplerConfig(name="heun")},
        {"prompt": "a cat AND a dog :0.5", "guider": GuiderConfig(pag=PAG)},
        {"guider": GuiderConfig(scale=1.0, interval=IntervalConfig(low=0.5, high=5.0))},
        {"guider": GuiderConfig(cfg_zero_star=CfgZeroStarConfig(zero_init=1), perp_neg=PerpNegConfig(), pag=PAG)},
        {"empty_negative": "encode", "guider": GuiderConfig(interval=IntervalConfig(low=0.5, high=5.0))},
    ],
    ids=["plain", "heun", "and-pag", "scale-1", "perp-neg", "interval"],
)
def test_a_picture_takes_what_its_plan_says(engines: dict[str, Engine], changes: dict[str, Any]) -> None:
    plan, engine = plan_of(**changes), engines["base"]

    def run() -> None:
        *_, last = sample(engine, [plan])
        decode(engine, last.x, decoding="whole")

    assert counted(run) == said(plan, engines)


def test_a_refiner_is_a_part_of_its_own(engines: dict[str, Engine]) -> None:
    plan = plan_of(refiner=REFINED)

    def run() -> None:
        noise = picture_noise(engines["base"], [plan])
        *_, last = sample(engines["base"], [plan], noise)
        *_, last = refine(engines["refiner"], [plan], last.x, noise)
        decode(engines["base"], last.x, decoding="whole")

    assert counted(run) == said(plan, engines)
    parts = plan_work(plan, engines["base"].config, engines["refiner"].config)
    assert [(part.name, part.model) for part in parts] == [
        ("text", "tiny-base"),
        ("network", "tiny-base"),
        ("text", "tiny-refiner"),
        ("network", "tiny-refiner"),
        ("decode", "tiny-base"),
    ]
    with pytest.raises(ValueError, match="model is missing"):
        plan_work(plan, engines["base"].config)


@pytest.mark.parametrize("kind", ["base", "inpaint"])
def test_a_picture_to_start_from_is_encoded(engines: dict[str, Engine], kind: Any) -> None:
    file = SourceFile(name="in.png", sha256="0" * 64, size=SIZE)
    condition: Any = "inpaint" if kind == "inpaint" else "none"
    source = Source(picture=file, mask=file, condition=condition, how=SourceConfig(strength=0.5))
    plan, engine = plan_of(model=f"tiny-{kind}", source=source), engines[kind]
    black = np.zeros((*SIZE, 3), np.uint8)
    canvas = Canvas(black, np.full(SIZE, 255, np.uint8))

    def run() -> None:
        *_, last = sample_from(engine, [plan], [canvas])
        decode(engine, last.x, decoding="whole")

    assert counted(run) == said(plan, engines, kind)


def test_nobody_knows_what_an_adaptive_sampler_takes(engines: dict[str, Engine]) -> None:
    plan = plan_of(sampler=SamplerConfig(name="dpm_adaptive"))
    parts = {part.name: part for part in plan_work(plan, engines["base"].config)}
    assert (parts["network"].calls, parts["network"].rows, parts["network"].work) == (None, None, None)
    assert parts["decode"].work is not None
