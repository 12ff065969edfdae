"""Plans for the tiny model, and what is drawn of them."""

from typing import Any

from torch import Tensor

from sdxl_core.engine import Engine
from sdxl_core.pipeline import sample
from sdxl_core.plan import Plan


def plan_of(**changes: Any) -> Plan:
    size = changes.pop("size", (32, 40))
    given = {"prompt": "a cat", "seed": 1, "steps": 4, "original_size": size, "target_size": size, **changes}
    return Plan(model="tiny-base", file="tiny.safetensors", size=size, **given)


def latents(engine: Engine, *plans: Plan) -> Tensor:
    *_, last = sample(engine, plans)
    return last.x


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
