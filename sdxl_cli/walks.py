"""The flags of `sdxl sigmas` as lists of noise levels, one for every curve or column."""

from dataclasses import dataclass

from sdxl_cli.console import Console
from sdxl_cli.schedules import described, parse_schedule, read_sigmas
from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import last_levels
from sdxl_core.diffusion.handover import Handover, find_switch
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.errors import UsageError

DEFAULT_STEPS = 30


@dataclass(frozen=True, slots=True)
class Walk:
    """One list of levels as one model walks it.

    Args:
        name: of the schedule, with the options that are set.
        steps: that the schedule was asked for.
        sigmas: decreasing.
        first: the place of the first of them in the schedule.
        model: base or refiner where two share the picture, else empty.
    """

    name: str
    steps: int
    sigmas: tuple[float, ...]
    first: int = 0
    model: str = ""


def split_names(text: str) -> list[str]:
    """`karras:rho=5,sigma_min=0.1,beta` as its schedules: a comma before key=value belongs to the options."""
    names: list[str] = []
    for piece in text.split(","):
        if names and "=" in piece and ":" not in piece:
            names[-1] += f",{piece}"
        else:
            names.append(piece)
    return [name.strip() for name in names]


def named_schedule(text: str, flag_name: str) -> DiscretizationConfig:
    """A schedule by `NAME` or `NAME:key=value,...`.

    Raises:
        UsageError: no such schedule or option; names the flag.
    """
    name, options = parse_schedule(text, flag_name)
    return DiscretizationConfig(name=name, **options)


def resolve_walk(schedule: DiscretizationConfig, steps: int, denoiser: DenoiserConfig) -> Walk:
    """The levels of a schedule.

    Raises:
        ScheduleError: the list cannot be made.
    """
    return Walk(described(schedule), steps, resolve_sigmas(schedule, steps, denoiser))


def given_walk(text: str, steps: int | None, denoiser: DenoiserConfig) -> Walk:
    """The levels of `--sigmas`.

    Raises:
        UsageError: as `read_sigmas`, or --steps says another number.
        ScheduleError: as `read_sigmas`.
    """
    sigmas = read_sigmas(text)
    if steps not in (None, len(sigmas) - 1):
        raise UsageError(f"--sigmas takes {len(sigmas) - 1} steps, --steps says {steps}", hint="leave --steps out")
    explicit = DiscretizationConfig.model_validate({"name": "explicit", "sigmas": sigmas})
    return resolve_walk(explicit, len(sigmas) - 1, denoiser)


def cut_to_strength(walk: Walk, strength: float, console: Console) -> Walk:
    """The last levels of a walk, as a picture of that strength takes them.

    Raises:
        ScheduleError: a strength outside (0, 1].
    """
    sigmas = last_levels(walk.sigmas, strength)
    steps = len(sigmas) - 1
    console.note(
        f"{walk.name}: strength {strength:g} of {walk.steps} steps: {steps} step{'s' * (steps != 1)}, "
        f"sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}"
    )
    return Walk(walk.name, walk.steps, sigmas)


def shared_walks(walk: Walk, handover: Handover, denoiser: DenoiserConfig, console: Console) -> list[Walk]:
    """What each of two models walks.

    Raises:
        UsageError: the way counts steps of another run.
        ScheduleError: the switch lies outside the schedule.
    """
    if handover.steps not in (None, walk.steps):
        raise UsageError(f"{handover.text!r} counts {handover.steps} steps, the schedule has {walk.steps}")
    if handover.unit == "strength":
        sigmas = last_levels(walk.sigmas, handover.value)
        console.note(
            f"{handover.text}: the base walks all {walk.steps} steps; then noise of sigma {sigmas[0]:.4g} is added, "
            f"and the refiner walks {len(sigmas) - 1}"
        )
        first = len(walk.sigmas) - len(sigmas)
        return [
            Walk(walk.name, walk.steps, walk.sigmas, 0, "base"),
            Walk(walk.name, walk.steps, sigmas, first, "refiner"),
        ]
    switch = find_switch(handover, walk.sigmas, denoiser)
    console.note(
        f"{handover.text}: base {switch.step} steps, refiner {walk.steps - switch.step}; "
        f"the switch is at sigma {switch.sigma:.4g}, fraction {switch.fraction:.3g}"
    )
    return [
        Walk(walk.name, walk.steps, walk.sigmas[: switch.step + 1], 0, "base"),
        Walk(walk.name, walk.steps, walk.sigmas[switch.step :], switch.step, "refiner"),
    ]
