"""The flags of `sdxl sigmas` as lists of noise levels, one for every curve or column."""

from dataclasses import dataclass, replace

from sdxl_cli.console import Console
from sdxl_cli.schedules import described, parse_schedule, read_sigmas
from sdxl_core.compat import Conventions, Snap, conventions_of
from sdxl_core.config import DenoiserConfig, DiscretizationConfig, ProgramName
from sdxl_core.diffusion.discretization import last_levels
from sdxl_core.diffusion.handover import Handover, find_switch
from sdxl_core.diffusion.levels import steps_of_whole
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.diffusion.schedules.variants import as_program
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
        snap: what the network is told between two trained levels.
    """

    name: str
    steps: int
    sigmas: tuple[float, ...]
    first: int = 0
    model: str = ""
    snap: Snap = "level"


@dataclass(frozen=True, slots=True)
class Maker:
    """How levels are made of the name of a schedule.

    Args:
        denoiser: what the model was trained on.
        compat: the program whose rules count; None for this one.
        sampler: that walks them: some programs make other levels for some samplers.
    """

    denoiser: DenoiserConfig
    compat: ProgramName | None = None
    sampler: str = "euler"

    def conventions(self, schedule: DiscretizationConfig) -> Conventions:
        """What the program does with a schedule."""
        return conventions_of(self.compat, self.sampler, schedule.name)

    def walk(self, schedule: DiscretizationConfig, steps: int) -> Walk:
        """The levels of a schedule, named as this program calls what the other one makes.

        Raises:
            ScheduleError: the list cannot be made.
        """
        made = as_program(self.compat, self.sampler, schedule, steps, self.denoiser)
        conventions = self.conventions(schedule)
        sigmas = resolve_sigmas(made, steps, self.denoiser, conventions.drop_penultimate)
        return Walk(described(made), steps, sigmas, snap=conventions.snap)

    def end(self, schedule: DiscretizationConfig, steps: int, strength: float, console: Console) -> Walk:
        """The last levels of a schedule, as a picture of that strength takes them.

        Raises:
            ScheduleError: a strength outside (0, 1], or the list cannot be made.
        """
        rule = self.conventions(schedule).strength
        whole = self.walk(schedule, steps_of_whole(steps, strength) if rule == "exact" else steps)
        sigmas = whole.sigmas[-steps - 1 :] if rule == "exact" else last_levels(whole.sigmas, strength, rule)
        walked = len(sigmas) - 1
        console.note(
            f"{whole.name}: strength {strength:g} of {whole.steps} steps: {walked} step{'s' * (walked != 1)}, "
            f"sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}"
        )
        return replace(whole, sigmas=sigmas)


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


def given_schedule(text: str, steps: int | None) -> tuple[DiscretizationConfig, int]:
    """The levels of `--sigmas` and their number of steps.

    Raises:
        UsageError: as `read_sigmas`, or --steps says another number.
        ScheduleError: as `read_sigmas`.
    """
    sigmas = read_sigmas(text)
    if steps not in (None, len(sigmas) - 1):
        raise UsageError(f"--sigmas takes {len(sigmas) - 1} steps, --steps says {steps}", hint="leave --steps out")
    return DiscretizationConfig.model_validate({"name": "explicit", "sigmas": sigmas}), len(sigmas) - 1


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
        return [replace(walk, model="base"), replace(walk, sigmas=sigmas, first=first, model="refiner")]
    switch = find_switch(handover, walk.sigmas, denoiser)
    console.note(
        f"{handover.text}: base {switch.step} steps, refiner {walk.steps - switch.step}; "
        f"the switch is at sigma {switch.sigma:.4g}, fraction {switch.fraction:.3g}"
    )
    return [
        replace(walk, sigmas=walk.sigmas[: switch.step + 1], model="base"),
        replace(walk, sigmas=walk.sigmas[switch.step :], first=switch.step, model="refiner"),
    ]
