"""What the mixture is asked: where the equation leads, and whether samplers that add noise reach the right law."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from error import BUDGETS, METHODS, SCHEDULE_NAMES, Method, afforded, levels, measure, relative_error
from mixture import DIMENSIONS, Mixture, build_mixture
from torch import Tensor

from sdxl_core.diffusion.noise import PictureNoise, pure_noise
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.types import Option

SCALES = (1.0, 5.0)
STARTS = 64
REFERENCE = Method("uni_pc")
REFERENCE_SCHEDULE, REFERENCE_STEPS = "exponential", 1000
CHECK = Method("seeds_3", {"eta": 0.0})
ENDS_STEPS = 100
ENDS_BUDGETS = (8, 16, 32)
TOLERANCES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)

SAMPLES = 2000
LAW_SCHEDULE = "karras"
LAW_BUDGETS = (8, 16, 32, 64)
FINEST = DIMENSIONS // 4
WITHOUT_NOISE = ("euler", "dpmpp_2m")


def walked(
    law: Mixture, x: Tensor, sampler: str, sigmas: Sequence[float], options: Mapping[str, Option], seed: int = 0
) -> Tensor:
    """Where (1, 1, n, d) points end, all drawing from one generator: (n, d)."""
    noise = PictureNoise([seed], (1, *x.shape[2:]))
    *_, last = SAMPLERS[sampler].fn(law, x, sigmas, noise=noise, **options)
    return last.x[0, 0]


def start(n: int, seed: int) -> Tensor:
    """(1, 1, n, d) standard normal draws."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 1, n, DIMENSIONS), generator=generator, dtype=torch.float64)


def solve(law: Mixture, eps: Tensor, method: Method = REFERENCE) -> Tensor:
    """Where the equation leads over all the levels of the model, then the prediction made there."""
    sigmas = levels(REFERENCE_SCHEDULE, REFERENCE_STEPS)
    assert sigmas is not None
    return walked(law, pure_noise(eps, sigmas[0]), method.sampler, sigmas, method.options)


def ends_error(law: Mixture, eps: Tensor, sigmas: Sequence[float], wanted: Tensor) -> float:
    """What an exact solver would be wrong by if it walked from the first level of a list to the last above 0.

    The rest is the step to 0, if the list has one: it takes what is left of the noise away at once.
    """
    positive = [sigma for sigma in sigmas if sigma > 0]
    high, low = positive[0], positive[-1]
    finer = [high * (low / high) ** (i / ENDS_STEPS) for i in range(ENDS_STEPS)] + [low]
    finer += [0.0] * (sigmas[-1] == 0)
    return relative_error(walked(law, pure_noise(eps, high), REFERENCE.sampler, finer, {}), wanted)


def adaptive(law: Mixture, eps: Tensor, wanted: Tensor) -> list[dict[str, float]]:
    """DPM adaptive at several tolerances: calls and error, both geometric means of starts walked one by one."""
    sigmas = levels(LAW_SCHEDULE, 20)
    assert sigmas is not None
    rows = []
    for rtol in TOLERANCES:
        calls, ends = [], []
        for row in range(16):
            x = pure_noise(eps[:, :, row : row + 1], sigmas[0])
            steps = list(SAMPLERS["dpm_adaptive"].fn(law, x, sigmas, noise=PictureNoise([0], (1, 1, 1)), rtol=rtol))
            calls.append(sum(step.calls for step in steps))
            ends.append(steps[-1].x[0, 0])
        error = relative_error(torch.cat(ends), wanted[:16])
        rows.append({"rtol": rtol, "calls": math.exp(sum(map(math.log, calls)) / len(calls)), "error": error})
    return rows


def measure_equation() -> dict[str, Any]:
    """Every method on every schedule, at each scale of guidance."""
    found: dict[str, Any] = {}
    eps = start(STARTS, 1)
    for scale in SCALES:
        law = build_mixture(scale)
        wanted = solve(law, eps)

        def error(
            method: Method, schedule: str, sigmas: tuple[float, ...], law: Mixture = law, wanted: Tensor = wanted
        ) -> float:
            x = pure_noise(eps, sigmas[0])
            return relative_error(walked(law, x, method.sampler, sigmas, method.options), wanted)

        ends: dict[str, dict[str, float]] = {}
        for schedule in SCHEDULE_NAMES:
            lists = {budget: afforded(REFERENCE, schedule, budget) for budget in ENDS_BUDGETS}
            ends[schedule] = {str(b): ends_error(law, eps, sigmas, wanted) for b, sigmas in lists.items() if sigmas}
        runs = []
        for run in measure(METHODS, SCHEDULE_NAMES, BUDGETS, error):
            if not runs or runs[-1].schedule != run.schedule:
                print(f"mixture, guidance {scale:g}: {run.schedule}", flush=True)
            runs.append(run)
        found[f"{scale:g}"] = {
            "checked": relative_error(solve(law, eps, CHECK), wanted),
            "runs": [asdict(run) for run in runs],
            "ends": ends,
            "adaptive": adaptive(law, eps, wanted),
        }
    return found


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two equally large sets, (n, d): 0 for one law, above 0 for two.

    Source: Szekely and Rizzo 2013, Energy statistics.
    """
    n = len(a)
    within = sum(float(torch.cdist(each, each).sum()) / (n * (n - 1)) for each in (a, b))
    return 2 * float(torch.cdist(a, b).mean()) - within


def measure_law() -> list[dict[str, Any]]:
    """Samplers that add noise, and two that do not: many samples against as many data."""
    law, eps = build_mixture(), start(SAMPLES, 2)
    data, stds = law.draw(SAMPLES, 3), law.draw(100 * SAMPLES, 4).std(dim=0)
    names = [name for name, row in SAMPLERS.items() if row.stochastic and not row.uncond and name != "tcd"]
    rows = []
    for name in (*WITHOUT_NOISE, *names):
        print(f"mixture, law: {name}", flush=True)
        for budget in LAW_BUDGETS:
            sigmas = afforded(Method(name), LAW_SCHEDULE, budget)
            if sigmas is not None:
                found = walked(law, pure_noise(eps, sigmas[0]), name, sigmas, {}, seed=5)
                rows.append(
                    {
                        "sampler": name,
                        "budget": budget,
                        "distance": energy_distance(found, data),
                        "finest": float((found.std(dim=0) / stds)[-FINEST:].mean()),
                    }
                )
    again = law.draw(SAMPLES, 6)
    floor = {"distance": energy_distance(again, data), "finest": float((again.std(dim=0) / stds)[-FINEST:].mean())}
    return [*rows, {"sampler": "other data", "budget": 0, **floor}]
