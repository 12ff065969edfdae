"""The samplers, in one table. Importing them does not import torch.

A sampler is a generator (denoise, x, sigmas, *, noise, **options) -> Iterator[Step].
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from sdxl_core.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2s_ancestral
from sdxl_core.diffusion.samplers.euler import euler, euler_ancestral
from sdxl_core.diffusion.samplers.heun import heun
from sdxl_core.diffusion.samplers.lms import lms
from sdxl_core.diffusion.samplers.moves import ancestral_levels
from sdxl_core.errors import UsageError
from sdxl_core.typed_toml import suggestion
from sdxl_core.types import Step


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of the table.

    Args:
        name: what presets and the command line call it.
        fn: the generator.
        order: of convergence, once it has its history, without the noise it may add.
        calls: model calls of a step; a step down to level 0 always makes one.
        stochastic: draws noise with its default options.
        source: where the method was published.
    """

    name: str
    fn: Callable[..., Iterator[Step]]
    order: int
    calls: int
    stochastic: bool
    source: str

    @property
    def options(self) -> dict[str, float | int]:
        """The options it takes, each with its default."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "noise"}


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler("euler", euler, 1, 1, False, "arXiv:2206.00364"),
        "heun": Sampler("heun", heun, 2, 2, False, "arXiv:2206.00364"),
        "euler_ancestral": Sampler("euler_ancestral", euler_ancestral, 1, 1, True, "arXiv:2010.02502"),
        "dpmpp_2s_ancestral": Sampler("dpmpp_2s_ancestral", dpmpp_2s_ancestral, 2, 2, True, "arXiv:2211.01095"),
        "dpmpp_2m": Sampler("dpmpp_2m", dpmpp_2m, 2, 1, False, "arXiv:2211.01095"),
        "lms": Sampler("lms", lms, 4, 1, False, "Hairer, Norsett, Wanner: Solving ODEs I, III.5"),
    }
)


def resolve_sampler(name: str) -> Sampler:
    """The row of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in SAMPLERS:
        raise UsageError(f"unknown sampler {name!r}{suggestion(name, SAMPLERS)}", hint=f"one of: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def check_options(name: str, options: Mapping[str, float | int]) -> None:
    """Refuse an unknown sampler, an option that it does not take, or a value outside the option's range.

    Raises:
        UsageError: with a suggestion where there is one.
    """
    taken = resolve_sampler(name).options
    for option, value in options.items():
        if option not in taken:
            takes = f"it takes {', '.join(taken)}" if taken else "it takes no options"
            raise UsageError(f"sampler {name!r} has no option {option!r}{suggestion(option, taken)}", hint=takes)
        if option == "order" and value not in (1, 2, 3, 4):
            raise UsageError(f"order of sampler {name!r} must be 1, 2, 3 or 4, not {value}")
        if not value >= 0 or (math.isinf(value) and option != "s_tmax"):
            raise UsageError(f"{option} of sampler {name!r} must be a number of at least 0, not {value}")


def model_calls(name: str, sigmas: Sequence[float], options: Mapping[str, float | int] | None = None) -> int:
    """How many times `denoise` will be called over the whole list; exact.

    Raises:
        UsageError: as `check_options`.
    """
    options = options or {}
    check_options(name, options)
    sampler = SAMPLERS[name]
    eta = {**sampler.options, **options}.get("eta", 0.0)
    landings = (ancestral_levels(sigma, sigma_next, eta)[0] for sigma, sigma_next in pairwise(sigmas))
    return sum(sampler.calls if landing > 0 else 1 for landing in landings)
