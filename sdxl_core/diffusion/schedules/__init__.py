"""The schedules, in one table: which noise levels a run of n steps walks through. Imports no torch.

A schedule is a function (table, n, *, options) -> n + 1 levels, descending: `table` holds the model's own levels,
ascending. One name means one list: where programs mean different lists by a name, the plain one is ComfyUI's and the
others carry the program's name.
"""

import inspect
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.levels import MOST_STEPS, check_sigmas
from sdxl_core.diffusion.options import Allowed, Between, Numbers, OneOf, Positive, check_row_options, options_of
from sdxl_core.diffusion.schedules import by_formula, by_search, by_timestep
from sdxl_core.diffusion.schedules.gits import CHOSEN
from sdxl_core.diffusion.schedules.ramps import Table
from sdxl_core.errors import ScheduleError
from sdxl_core.types import Option
from sdxl_core.unknown import unknown


@dataclass(frozen=True, slots=True)
class Schedule:
    """One row of the table.

    Args:
        name: what presets and the command line call it.
        fn: the function; its keyword arguments are the options, None where the model's own value is taken.
        source: the paper, or the program whose definition it is.
        allowed: what an option may be where the rules of `check_row_options` do not say enough.
    """

    name: str
    fn: Callable[..., Sequence[float]]
    source: str
    allowed: Mapping[str, Allowed] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Option]:
        """The options it takes, each with its default."""
        return options_of(self.fn)

    @property
    def summary(self) -> str:
        """What it is, in one sentence: its docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0].rstrip(".")

    def check(self, options: Mapping[str, object]) -> None:
        """Refuse an option that it does not take, or a value of the wrong type or outside the option's range.

        Raises:
            UsageError: with a suggestion where there is one.
        """
        check_row_options(f"schedule {self.name!r}", self.options, self.allowed, options)

    def levels(self, table: Table, n: int, options: Mapping[str, Option]) -> tuple[float, ...]:
        """The n + 1 levels of a model, decreasing; float32 values as Python floats.

        Args:
            table: the model's levels, ascending.
            n: steps, 1 to 1000.
            options: as `check` allows them.

        Raises:
            UsageError: as `check`.
            ScheduleError: the schedule has no list of that length for this model.
        """
        self.check(options)
        if not 1 <= n <= MOST_STEPS:
            raise ScheduleError(f"the number of steps must be between 1 and {MOST_STEPS}, not {n}")
        sigmas = tuple(array("f", self.fn(table, n, **options)))
        for i, (sigma, following) in enumerate(pairwise(sigmas)):
            if sigma == following:
                raise ScheduleError(
                    f"the schedule {self.name} cannot give {n} distinct levels: levels {i} and {i + 1} are both "
                    f"{sigma:g}",
                    hint="take fewer steps, or other options" if options else "take fewer steps",
                )
        check_sigmas(sigmas)
        return sigmas


def explicit(table: Table, n: int, *, sigmas: tuple[float, ...] = ()) -> Sequence[float]:
    """The levels that are given, one more than there are steps."""
    if not sigmas:
        raise ScheduleError(
            "the schedule explicit has no levels of its own", hint="give them, as in --sigmas 14.6,7.8,3.5,0"
        )
    check_sigmas(sigmas)
    if len(sigmas) != n + 1:
        steps = len(sigmas) - 1
        raise ScheduleError(
            f"the list of {len(sigmas)} noise levels takes {steps} steps, not {n}", hint=f"set the steps to {steps}"
        )
    return sigmas


_ENDS: dict[str, Allowed] = {"sigma_min": Positive(), "sigma_max": Positive()}
_RHO: dict[str, Allowed] = {"rho": Positive()}
_SHAPE: dict[str, Allowed] = {"alpha": Between(0.05, 100), "beta": Between(0.05, 100)}
_ANY = Between(-100, 100)

_ROWS = (
    Schedule("legacy_ddpm", by_timestep.legacy_ddpm, "the published SDXL config"),
    Schedule("normal", by_timestep.normal, "ComfyUI; A1111's Uniform"),
    Schedule("simple", by_timestep.simple, "ComfyUI"),
    Schedule("sgm_uniform", by_timestep.sgm_uniform, "ComfyUI"),
    Schedule("ddim_uniform", by_timestep.ddim_uniform, "arXiv:2010.02502"),
    Schedule("trailing", by_timestep.trailing, "arXiv:2305.08891, table 2"),
    Schedule("leading", by_timestep.leading, "arXiv:2305.08891, table 2"),
    Schedule("leading_multistep", by_timestep.leading_multistep, "diffusers"),
    Schedule("linspace_multistep", by_timestep.linspace_multistep, "diffusers"),
    Schedule("linspace", by_timestep.linspace, "arXiv:2305.08891, table 2"),
    Schedule("edm", by_formula.edm, "arXiv:2206.00364, equation 5", _ENDS | _RHO),
    Schedule("karras", by_formula.karras, "arXiv:2206.00364, equation 5", _ENDS | _RHO),
    Schedule("exponential", by_formula.exponential, "k-diffusion", _ENDS),
    Schedule("polyexponential", by_formula.polyexponential, "k-diffusion", _ENDS | _RHO),
    Schedule("beta", by_timestep.beta, "arXiv:2407.12173", _SHAPE),
    Schedule("beta_a1111", by_formula.beta_a1111, "A1111; diffusers", _ENDS | _SHAPE),
    Schedule("beta_continuous", by_timestep.beta_continuous, "arXiv:2407.12173", _SHAPE),
    Schedule("kl_optimal", by_formula.kl_optimal, "arXiv:2404.14507, section 4.1", _ENDS),
    Schedule("kl_optimal_a1111", by_formula.kl_optimal_a1111, "A1111", _ENDS),
    Schedule("align_your_steps", by_search.align_your_steps, "arXiv:2404.14507"),
    Schedule("align_your_steps_a1111", by_search.align_your_steps_a1111, "A1111"),
    Schedule("align_your_steps_32", by_search.align_your_steps_32, "Forge"),
    Schedule("gits", by_search.gits, "arXiv:2405.11326", {"coefficient": OneOf(tuple(float(c) for c in CHOSEN))}),
    Schedule("gits_forge", by_search.gits_forge, "Forge"),
    Schedule("laplace", by_formula.laplace, "arXiv:2407.03297", _ENDS | {"mu": _ANY, "beta": Positive()}),
    Schedule("vp", by_formula.vp, "arXiv:2011.13456", {"beta_d": Positive(), "eps_s": Between(1e-9, 0.5)}),
    Schedule("turbo", by_timestep.turbo, "arXiv:2311.17042"),
    Schedule("turbo_forge", by_timestep.turbo_forge, "Forge"),
    Schedule("lcm", by_timestep.lcm, "arXiv:2310.04378", {"original_steps": Between(1, MOST_STEPS, whole=True)}),
    Schedule("linear_quadratic", by_formula.linear_quadratic, "Mochi 1; ComfyUI", {"threshold": Between(1e-6, 0.5)}),
    Schedule(
        "bong_tangent", by_formula.bong_tangent, "RES4LYF", {"pivot": Between(0.1, 0.9), "slope": Between(1e-3, 100)}
    ),
    Schedule("smoothstep", by_timestep.smoothstep, "stable-diffusion.cpp"),
    Schedule("explicit", explicit, "you", {"sigmas": Numbers()}),
)

SCHEDULES: Mapping[str, Schedule] = MappingProxyType({row.name: row for row in _ROWS})
ALIASES: Mapping[str, str] = MappingProxyType({"ddpm": "legacy_ddpm"})
"""Second names, on the command line only."""


def resolve_schedule(name: str) -> Schedule:
    """The row of that name.

    Raises:
        ScheduleError: there is none; names the nearest.
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES, error=ScheduleError)
    return SCHEDULES[name]


def check_schedule(name: str, options: Mapping[str, object]) -> None:
    """Refuse an unknown schedule, an option that it does not take, or a value that the option cannot have.

    Raises:
        UsageError: with a suggestion where there is one.
    """
    resolve_schedule(name).check(options)


def resolve_sigmas(
    discretization: DiscretizationConfig, n: int, denoiser: DenoiserConfig, drop_penultimate: bool = False
) -> tuple[float, ...]:
    """The n + 1 levels that a run of n steps walks through, decreasing; float32 values as Python floats.

    The last is 0 but for kl_optimal_a1111 and for explicit lists that end elsewhere: there, noise of that level stays.
    With `drop_penultimate` they are those of n + 1 steps without the last but one; explicit lists stay whole.

    Raises:
        UsageError: an unknown schedule, or an option that it cannot have.
        ScheduleError: the list cannot be made.
    """
    from sdxl_core.diffusion.discretization import trained_levels  # numpy is kept off the start-up path

    table = trained_levels(denoiser).tolist()
    schedule, options = resolve_schedule(discretization.name), discretization.options()
    if not drop_penultimate or schedule.name == "explicit":
        return schedule.levels(table, n, options)
    *levels, _, last = schedule.levels(table, n + 1, options)
    return (*levels, last)
