"""The same question to a trained network: micro, guided, a handful of prompts in one batch."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from error import METHODS, Method, measure, relative_error
from torch import Tensor

from sdxl_core.compat import Conventions, Snap
from sdxl_core.config import DiscretizationConfig, SamplerConfig
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import sample
from sdxl_core.plan import build_plan
from sdxl_core.presets import Preset, load_preset

PROMPTS = ("a cat on a white background, noto style", "a red apple on a blue background, flat style")
BUDGETS = (8, 16, 24)
SAMPLERS_ON, SCHEDULES_WITH = "karras", Method("uni_pc")
REFERENCE = (Method("uni_pc"), "exponential", 1000)
EFFECTS_OF = (Method("uni_pc"), "exponential", 20)
PRESETS = (
    (Method("euler"), "legacy_ddpm", 30),
    (Method("uni_pc"), "exponential", 20),
    (Method("uni_pc"), "karras", 20),
)

SAMPLERS = (
    *("euler", "heun", "dpmpp_2m", "lms", "ipndm", "deis", "uni_pc"),
    *(f"{name}:eta=0" for name in ("dpmpp_2s_ancestral", "dpmpp_3m_sde", "er_sde", "sa_solver")),
)
SCHEDULES = (
    "legacy_ddpm",
    "normal",
    "edm",
    "exponential",
    "beta",
    "kl_optimal",
    "align_your_steps",
    "gits",
    "smoothstep",
)
"""A network is dear: left out are what is like another one of these, and what the mixture has far behind."""


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


def measure_micro(path: Path, preset: str) -> dict[str, Any]:
    """Every method on one schedule, and every schedule with one method."""
    micro = Micro(path, preset)
    wanted = micro.latents(*REFERENCE)
    print("micro: solved", flush=True)

    def error(method: Method, schedule: str, sigmas: tuple[float, ...]) -> float:
        found = relative_error(micro.latents(method, schedule, len(sigmas) - 1), wanted)
        print(f"micro: {method.name} on {schedule}, {len(sigmas) - 1} steps: {found:.3g}", flush=True)
        return found

    methods = [method for method in METHODS if method.name in SAMPLERS]
    runs = [*measure(methods, [SAMPLERS_ON], BUDGETS, error), *measure([SCHEDULES_WITH], SCHEDULES, BUDGETS, error)]
    plain = micro.latents(*EFFECTS_OF)
    presets = {
        f"{steps} steps of {method.name} on {schedule}": relative_error(micro.latents(method, schedule, steps), wanted)
        for method, schedule, steps in PRESETS
    }
    return {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dtype": "float32",
        "guidance": micro.preset.recipe.guider.scale,
        "pictures": len(PROMPTS),
        "reference": REFERENCE[2],
        "presets": presets,
        "effects": {
            "bfloat16": relative_error(Micro(path, preset, "bfloat16").latents(*EFFECTS_OF), plain),
            "levels moved to trained ones": relative_error(micro.latents(*EFFECTS_OF, snap="level"), plain),
        },
        "runs": [asdict(run) for run in runs],
    }
