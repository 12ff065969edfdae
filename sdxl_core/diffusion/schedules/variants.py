"""What the name of a schedule means in another program. Imports no torch."""

from sdxl_core.compat import PROGRAMS
from sdxl_core.config import DenoiserConfig, DiscretizationConfig, ProgramName
from sdxl_core.diffusion.schedules import resolve_sigmas

_BOUNDED = ("karras", "exponential", "beta_a1111")


def as_program(
    program: ProgramName | None, sampler: str, discretization: DiscretizationConfig, n: int, denoiser: DenoiserConfig
) -> DiscretizationConfig:
    """The schedule of ours that a program means by a name when a sampler walks n steps, with the ends it has there.

    Ends that are given stay; None is this program, which means its own.

    Raises:
        ScheduleError: the schedule that gives the ends cannot have so many levels.
    """
    if program is None:
        return discretization
    habits = PROGRAMS[program].with_sampler(sampler)
    name, options = habits.schedules.get(discretization.name, discretization.name), discretization.options()
    if habits.ends_of is not None and name in _BOUNDED:
        levels = resolve_sigmas(DiscretizationConfig(name=habits.ends_of), n, denoiser)
        options = {"sigma_min": levels[-2], "sigma_max": levels[0], **options}
    return DiscretizationConfig(name=name, **options)
