"""Where a second model takes over: what `--refine` says, and the levels that each of the two models walks.

    share@0.8         one schedule for both: the second model goes on with the noise that is left at the first level
                      below the last 20 % of the trained timesteps; nothing is added
    share@step=24     the same after 24 steps
    share@sigma=0.4   the same at the first level of 0.4 or less
    steps@40/50       the same after 40 of 50 steps
    sdedit@0.15       the first model ends its picture; noise is added to it, and the second walks the last 15 % of the
                      steps

Imports no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.discretization import sigma_to_fractional_timestep, trained_levels
from sdxl_core.errors import ScheduleError, UsageError
from sdxl_core.unknown import suggestion

EXAMPLES = ("share@0.8", "share@step=24", "share@sigma=0.4", "steps@40/50", "sdedit@0.15")
"""One of each form."""

Unit = Literal["fraction", "step", "sigma", "strength"]

_NUMBER = r"(\d{1,9}(?:\.\d{1,17})?|\.\d{1,17})"
_FORMS: Mapping[Unit, re.Pattern[str]] = {
    "fraction": re.compile(rf"share@{_NUMBER}", re.ASCII),
    "sigma": re.compile(rf"share@sigma={_NUMBER}", re.ASCII),
    "step": re.compile(r"share@step=(\d{1,9})|steps@(\d{1,9})/(\d{1,9})", re.ASCII),
    "strength": re.compile(rf"sdedit@{_NUMBER}", re.ASCII),
}


@dataclass(frozen=True, slots=True)
class Handover:
    """The text of `--refine`, understood.

    Args:
        text: as it was written.
        unit: what `value` counts; `strength` is SDEdit, the others share one schedule.
        value: fraction and strength between 0 and 1, a step of at least 1, or a level above 0.
        steps: of the whole run, where the text says them.
    """

    text: str
    unit: Unit
    value: float
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """One place on a schedule, said in three ways.

    Args:
        step: steps that the first model makes.
        sigma: the level where the second begins.
        fraction: of the trained timesteps that lie above that level.
    """

    step: int
    sigma: float
    fraction: float


def parse_handover(text: str) -> Handover:
    """Understand `share@0.8` and the like.

    Raises:
        UsageError: it is written otherwise, or its number is out of range.
    """
    found = [(unit, match) for unit, form in _FORMS.items() if (match := form.fullmatch(text.strip()))]
    if not found:
        raise UsageError(
            f"unknown way to hand over to the refiner {text!r}{suggestion(text, EXAMPLES)}",
            hint=f"write it like {', '.join(EXAMPLES[:-1])} or {EXAMPLES[-1]}",
        )
    unit, match = found[0]
    value, *steps = [number for number in match.groups() if number is not None]
    number = float(value)
    if number == 0 or (unit == "fraction" and number >= 1) or (unit == "strength" and number > 1):
        ranges = {"fraction": "between 0 and 1", "strength": "above 0 and at most 1"}
        hint = f"a step is written share@step={value}" if unit == "fraction" and number >= 1 else None
        raise UsageError(f"{text.strip()!r}: the {unit} must be {ranges.get(unit, 'above 0')}", hint=hint)
    return Handover(text.strip(), unit, number, int(steps[0]) if steps else None)


def find_switch(handover: Handover, sigmas: Sequence[float], denoiser: DenoiserConfig) -> Switch:
    """The level of a schedule where the second model takes over.

    Args:
        handover: any but SDEdit.
        sigmas: n + 1 decreasing levels.
        denoiser: of the second model; its table says which timestep a level is.

    Raises:
        ScheduleError: one of the two models would have no step.

    Source: the fraction is that of diffusers' `denoising_end`, by timestep and not by step: a refiner knows the lowest
    timesteps alone, whatever the schedule.
    """
    table, n = trained_levels(denoiser), len(sigmas) - 1
    timesteps = [sigma_to_fractional_timestep(sigma, table) for sigma in sigmas[:-1]]
    match handover.unit:
        case "step":
            step = int(handover.value)
        case "sigma":
            step = next((i for i, sigma in enumerate(sigmas) if sigma <= handover.value), n)
        case _:
            cutoff = round(denoiser.num_idx * (1 - handover.value))
            step = next((i for i, t in enumerate(timesteps) if t < cutoff), n)
    if not 0 < step < n:
        inner = f"between share@step=1 (sigma {sigmas[1]:.4g}) and share@step={n - 1} (sigma {sigmas[n - 1]:.4g})"
        raise ScheduleError(
            f"{handover.text!r} lies outside the schedule of {n} steps: the {'second' if step else 'first'} model "
            "would have none",
            hint=f"hand over {inner}, or take more steps" if n > 1 else "two models need at least 2 steps",
        )
    return Switch(step, sigmas[step], 1 - timesteps[step] / denoiser.num_idx)
