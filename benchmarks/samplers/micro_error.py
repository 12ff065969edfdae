"""The same question to a trained network: micro as its preset guides it, two pictures in one batch."""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from answers import Answers
from error import METHODS, SCHEDULE_NAMES, Method, Run, afforded, measure, relative_error
from error_figure import percent
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdxl_core.compat import Conventions, Snap
from sdxl_core.config import DiscretizationConfig, SamplerConfig
from sdxl_core.engine import Engine, load_engine
from sdxl_core.guider_config import GuiderConfig
from sdxl_core.pipeline import sample
from sdxl_core.plan import build_plan
from sdxl_core.presets import Preset, load_preset

PROMPTS = ("a cat on a white background, noto style", "a red apple on a blue background, flat style")
BUDGETS = (16, 8, 32)  # in the order in which they are asked
SCHEDULES = (
    "karras",
    "exponential",
    "edm",
    "align_your_steps",
    "gits",
    "beta",
    "beta_a1111",
    "kl_optimal",
    "normal",
    "legacy_ddpm",
    "smoothstep",
    "bong_tangent",
    "ddim_uniform",
)
"""With 8 and 32 calls these alone: on the mixture the others lie beside one of these, or far behind."""

REFERENCE = (Method("uni_pc"), "exponential", 1000)
CHECK = (Method("uni_pc"), "karras", 250)
BESIDE_OWN = (
    (Method("euler"), "legacy_ddpm", 30),
    (Method("dpmpp_2m"), "karras", 20),
    (Method("uni_pc"), "karras", 20),
)


class Micro:
    """A loaded model and the pictures that it is asked for.

    Args:
        path: its weights.
        preset: of the model.
        dtype: of the network.
    """

    def __init__(self, path: Path, preset: Preset, dtype: str = "float32") -> None:
        self._preset = preset
        self._engine: Engine = load_engine(preset.model, path, device="cpu", dtype=dtype)

    def latents(self, scale: float, method: Method, schedule: str, steps: int, snap: Snap = "none") -> Tensor:
        """Where the prompts end with guidance `scale`, picture i from seed i: (b, c, h, w)."""
        update = {
            "steps": steps,
            "sampler": SamplerConfig(name=method.sampler, **method.options),
            "discretization": DiscretizationConfig(name=schedule),
            "guider": GuiderConfig(scale=scale),
            "conventions": Conventions(snap=snap),
        }
        plans = [build_plan(self._preset, prompt, seed=i).model_copy(update=update) for i, prompt in enumerate(PROMPTS)]
        *_, last = sample(self._engine, plans)
        return last.x


class _TimeIsUpError(Exception):
    """The next walk would begin too late."""


class Law:
    """How far from the solution walks end at one scale of guidance.

    Args:
        micro: what is asked.
        scale: of classifier-free guidance; 1 is without.
        answers: what is known already; keeps what is found.
        solution: file of the solution, made where there is none.
    """

    def __init__(self, micro: Micro, scale: float, answers: Answers, solution: Path) -> None:
        self._micro, self._scale, self._answers = micro, scale, answers
        if not solution.exists():
            save_file({"x": micro.latents(scale, *REFERENCE)}, solution)
            print(f"{self}: solved", flush=True)
        self._wanted = load_file(solution)["x"]

    def __str__(self) -> str:
        return f"micro, guidance {self._scale:g}"

    def error(self, method: Method, schedule: str, steps: int) -> float:
        """Relative, of one walk."""

        def find() -> float:
            found = relative_error(self._micro.latents(self._scale, method, schedule, steps), self._wanted)
            print(f"{self._question(method, schedule, steps)}: {percent(found)} %", flush=True)
            return found

        return self._answers(self._question(method, schedule, steps), find)

    def runs(self, until: float) -> list[Run]:
        """Every method on every schedule with every budget: those that are known, and more as far as the time goes."""

        def error(method: Method, schedule: str, sigmas: tuple[float, ...]) -> float:
            steps = len(sigmas) - 1
            if time.monotonic() > until and self._question(method, schedule, steps) not in self._answers:
                raise _TimeIsUpError
            return self.error(method, schedule, steps)

        runs: list[Run] = []
        with suppress(_TimeIsUpError):
            for budget in BUDGETS:
                for run in measure(METHODS, schedules_asked(budget), (budget,), error):
                    runs.append(run)  # noqa: PERF402 (what there is by then is kept)
        return runs

    def _question(self, method: Method, schedule: str, steps: int) -> str:
        return f"{self}: {walk_name(method, schedule, steps)}"


def schedules_asked(budget: int) -> tuple[str, ...]:
    """All there are with the first of the budgets, `SCHEDULES` with the others."""
    return SCHEDULE_NAMES if budget == BUDGETS[0] else SCHEDULES


def walk_name(method: Method, schedule: str, steps: int) -> str:
    """In words."""
    return f"{steps} steps of {method.name} on {schedule}"


def measure_micro(path: Path, preset_name: str, out: Path, most_s: float) -> dict[str, Any]:
    """Every method on the schedules of `schedules_asked`, with the preset's guidance.

    What an earlier run has found for the same weights is not asked again: it lies in files of `out`.

    Args:
        path: the weights.
        preset_name: of their model.
        out: folder of what is known.
        most_s: seconds after which no other walk begins.
    """
    until = time.monotonic() + most_s
    preset, digest = load_preset(preset_name), hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    recipe, micro = preset.recipe, Micro(path, preset)
    own = Method(recipe.sampler.name, recipe.sampler.options()), recipe.discretization.name, recipe.steps
    answers, guided = Answers(out / f"micro-{digest}.jsonl"), recipe.guider.scale

    def effect(name: str, other: Callable[[], Tensor]) -> float:
        return answers(f"{name}: {walk_name(*own)}", lambda: relative_error(other(), micro.latents(guided, *own)))

    effects = {
        "bfloat16": lambda: Micro(path, preset, "bfloat16").latents(guided, *own),
        "levels moved to trained ones": lambda: micro.latents(guided, *own, snap="level"),
    }
    law = Law(micro, guided, answers, out / f"micro-{digest}-{guided:g}.safetensors")
    laws = {
        f"{guided:g}": {
            "checked": law.error(*CHECK),
            "presets": {walk_name(*walk): law.error(*walk) for walk in (own, *BESIDE_OWN)},
            "runs": [asdict(run) for run in law.runs(until)],
        }
    }
    return {
        "model": path.name,
        "sha256": digest,
        "dtype": "float32",
        "pictures": len(PROMPTS),
        "reference": walk_name(*REFERENCE),
        "check": walk_name(*CHECK),
        "asked": sum(afforded(m, s, b) is not None for m in METHODS for b in BUDGETS for s in schedules_asked(b)),
        "effects": {name: effect(name, other) for name, other in effects.items()},
        "laws": laws,
    }
