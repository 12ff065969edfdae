"""What the name of a schedule means in another program. Imports no torch."""

from sdxl_core.compat import PROGRAMS
from sdxl_core.config import DenoiserConfig, DiscretizationConfig, RecipeConfig
from sdxl_core.diffusion.schedules import resolve_sigmas

_BOUNDED = ("karras", "exponential", "beta_a1111")


def as_program(recipe: RecipeConfig, denoiser: DenoiserConfig) -> DiscretizationConfig:
    """The schedule of ours that the recipe's program means by its name, with the ends that it has there.

    Ends that the recipe gives stay.

    Raises:
        ScheduleError: the schedule that gives the ends cannot have so many levels.
    """
    discretization = recipe.discretization
    if recipe.compat is None:
        return discretization
    habits = PROGRAMS[recipe.compat].with_sampler(recipe.sampler.name)
    name, options = habits.schedules.get(discretization.name, discretization.name), discretization.options()
    if habits.ends_of is not None and name in _BOUNDED:
        levels = resolve_sigmas(DiscretizationConfig(name=habits.ends_of), recipe.steps, denoiser)
        options = {"sigma_min": levels[-2], "sigma_max": levels[0], **options}
    return DiscretizationConfig(name=name, **options)
