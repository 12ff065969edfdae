"""The same question to a trained network: micro, guided, a handful of prompts in one batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from error import METHODS, SCHEDULE_NAMES, Method, measure, relative_error
from torch import Tensor

from sdxl_core.compat import Conventions, Snap
from sdxl_core.config import DiscretizationConfig, SamplerConfig
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import sample
from sdxl_core.plan import build_plan
from sdxl_core.presets import Preset, load_preset

PROMPTS = (
    "a cat on a white background, noto style",
    "a red apple on a blue background, flat style",
    "a rocket on a black background, noto style",
    "a pizza on a green background, flat style",
)
BUDGETS = (8, 12, 16, 24, 32)
SAMPLERS_ON, SCHEDULES_WITH = "karras", Method("dpmpp_2m")
REFERENCE, CHECK = (Method("uni_pc"), "exponential", 1000), (Method("dpmpp_2m"), "karras", 200)
EFFECTS_OF = (Method("dpmpp_2m"), "karras", 24)
NEEDS_DISTILLED = ("turbo", "turbo_forge", "lcm")


class Micro:
    """A model and its preset, run as the program runs them but for what is compared.

    Levels are told to the network as they are, not moved to the nearest trained one: what is walked is then one and the
    same equation whatever the levels.

    Args:
        path: weights of the preset's model.
        preset: its name.
        dtype: of the network.
    """

    def __init__(self, path: Path, preset: str, dtype: str = "float32") -> None:
        self.preset: Preset = load_preset(preset)
        self.engine: Engine = load_engine(self.preset.model, path, device="cpu", dtype=dtype)

    def latents(self, method: Method, schedule: str, steps: int, snap: Snap = "none") -> Tensor:
        """Where the prompts end, picture i from seed i: (b, c, h, w)."""
        update = {
            "steps": steps,
            "sampler": SamplerConfig(name=method.sampler, **method.options),
            "discretization": DiscretizationConfig(name=schedule),
            "conventions": Conventions(snap=snap),
        }
        plans = [build_plan(self.preset, prompt, seed=i).model_copy(update=update) for i, prompt in enumerate(PROMPTS)]
        *_, last = sample(self.engine, plans)
        return last.x


def measure_micro(path: Path, preset: str, budgets: Sequence[int] = BUDGETS) -> dict[str, Any]:
    """Every method on one schedule, and every schedule with one method."""
    micro = Micro(path, preset)
    wanted = micro.latents(*REFERENCE)
    print("micro: solved", flush=True)

    def error(method: Method, schedule: str, sigmas: tuple[float, ...]) -> float:
        found = relative_error(micro.latents(method, schedule, len(sigmas) - 1), wanted)
        print(f"micro: {method.name} on {schedule}, {len(sigmas) - 1} steps: {found:.4f}", flush=True)
        return found

    schedules = [name for name in SCHEDULE_NAMES if name not in (SAMPLERS_ON, *NEEDS_DISTILLED)]
    runs = [*measure(METHODS, [SAMPLERS_ON], budgets, error), *measure([SCHEDULES_WITH], schedules, budgets, error)]
    plain = micro.latents(*EFFECTS_OF)
    return {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dtype": "float32",
        "guidance": micro.preset.recipe.guider.scale,
        "pictures": len(PROMPTS),
        "checked": relative_error(micro.latents(*CHECK), wanted),
        "effects": {
            "bfloat16": relative_error(Micro(path, preset, "bfloat16").latents(*EFFECTS_OF), plain),
            "levels moved to trained ones": relative_error(micro.latents(*EFFECTS_OF, snap="level"), plain),
        },
        "runs": [asdict(run) for run in runs],
    }
