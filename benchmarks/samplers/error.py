"""Error against model calls: which walks are compared, how many steps a number of calls affords, what an error is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.samplers import SAMPLERS, model_calls
from sdxl_core.diffusion.schedules import SCHEDULES, resolve_sigmas
from sdxl_core.errors import ScheduleError
from sdxl_core.types import Option

BUDGETS = (8, 12, 16, 24, 32, 48, 64)
SCHEDULE_NAMES = tuple(name for name in SCHEDULES if name not in ("explicit", "polyexponential"))
"""All but the list by hand, and one that is exponential with its own defaults."""

_LEAST_USE = 0.75  # of a budget: a list that cannot be made longer says nothing about it


@dataclass(frozen=True, slots=True)
class Method:
    """A sampler with the options it is run by."""

    sampler: str
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `--sampler` takes it."""
        options = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options.items())
        return f"{self.sampler}:{options}" if options else self.sampler


METHODS = (
    *(
        Method(name)
        for name, row in SAMPLERS.items()
        if not row.stochastic and not row.uncond and row.calls is not None and name != "ddim"
    ),
    Method("uni_pc", {"solver_type": "bh2"}),
    *(
        Method(name, {"eta": 0.0})
        for name in ("dpmpp_2s_ancestral", "dpmpp_3m_sde", "er_sde", "sa_solver", "sa_solver_pece", "seeds_3")
    ),
)
"""What is compared by its error: samplers without noise, and those with, at eta 0, where that is another method.

Not here: ddim, which is euler; dpm_adaptive, whose calls follow from a tolerance and not from a schedule; the CFG++
forms, which walk to another picture.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One walk, and how far its end is from where the equation leads."""

    method: str
    schedule: str
    budget: int
    steps: int
    calls: int
    error: float


@cache
def levels(schedule: str, steps: int) -> tuple[float, ...] | None:
    """The list of SDXL's levels, which are micro's, too; None where the schedule has none of that length."""
    try:
        return resolve_sigmas(DiscretizationConfig(name=schedule), steps, DenoiserConfig())
    except ScheduleError:
        return None


def calls_of(method: Method, sigmas: Sequence[float]) -> int:
    """Model calls of a walk of a method of `METHODS`."""
    calls = model_calls(method.sampler, sigmas, method.options)
    assert calls is not None
    return calls


def afforded(method: Method, schedule: str, budget: int) -> tuple[float, ...] | None:
    """The longest list of a schedule that a method walks in so many model calls.

    None where the schedule has no list that makes use of the budget.
    """
    each = SAMPLERS[method.sampler].calls
    assert each is not None
    for steps in range(budget // each + 2, 0, -1):
        sigmas = levels(schedule, steps)
        if sigmas is not None and (calls := calls_of(method, sigmas)) <= budget:
            return sigmas if calls >= _LEAST_USE * budget else None
    return None


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; over the pictures the geometric mean.

    A picture or two that end up elsewhere so do not hide how near the others come.

    Args:
        found: (pictures, ...).
        wanted: of the same shape.
    """
    difference, whole = ((part.double().flatten(1).square().mean(1)) for part in (found - wanted, wanted))
    return float((difference / whole).clamp(min=1e-40).log().mean().div(2).exp())


def measure(
    methods: Sequence[Method],
    schedules: Sequence[str],
    budgets: Sequence[int],
    error: Callable[[Method, str, tuple[float, ...]], float],
) -> Iterator[Run]:
    """Every method on every schedule with every budget."""
    for schedule in schedules:
        for method in methods:
            for budget in budgets:
                sigmas = afforded(method, schedule, budget)
                if sigmas is not None:
                    steps, calls = len(sigmas) - 1, calls_of(method, sigmas)
                    yield Run(method.name, schedule, budget, steps, calls, error(method, schedule, sigmas))
