"""One row of the table of samplers, and what its options may be."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from sdxl_core.errors import UsageError
from sdxl_core.typed_toml import either, shown, suggestion
from sdxl_core.types import Option, Step


@dataclass(frozen=True, slots=True)
class OneOf:
    """An option that takes one of these values."""

    values: tuple[Option, ...]

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(known) and value == known for known in self.values)

    def __str__(self) -> str:
        return either([str(value) for value in self.values])


@dataclass(frozen=True, slots=True)
class Between:
    """A number from low to high, both included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return _is_number(value) and self.low <= cast(float, value) <= self.high

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of the table.

    Args:
        fn: the generator, whose name is what presets and the command line call it. Its keyword arguments but `noise`
            are the options, each with a default of its type.
        order: of convergence, once it has its history, without the noise it may add; 0: it does not solve the equation.
        calls: model calls of a step; a step down to level 0 always makes one. None: it goes its own steps between the
            first and the last level, as many as the picture needs.
        stochastic: draws noise with its default options.
        source: where the method was published.
        allowed: what an option may be; one that is not named here is a number of at least 0, finite unless its default
            is not.
    """

    fn: Callable[..., Iterator[Step]]
    order: int
    calls: int | None
    stochastic: bool
    source: str
    allowed: Mapping[str, OneOf | Between] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What presets and the command line call it."""
        return self.fn.__name__

    @property
    def options(self) -> dict[str, Option]:
        """The options it takes, each with its default."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "noise"}

    @property
    def summary(self) -> str:
        """What it is: the beginning of its docstring, up to the first colon."""
        return (inspect.getdoc(self.fn) or "").partition(":")[0]

    def check(self, options: Mapping[str, object]) -> None:
        """Refuse an option that it does not take, or a value of the wrong type or outside the option's range.

        Raises:
            UsageError: with a suggestion where there is one.
        """
        taken = self.options
        for option, value in options.items():
            if option not in taken:
                takes = f"it takes {', '.join(taken)}" if taken else "it takes no options"
                near = suggestion(option, taken)
                raise UsageError(f"sampler {self.name!r} has no option {option!r}{near}", hint=takes)
            wanted = self._wanted(option, taken[option], value)
            if wanted is not None:
                near = suggestion(value, wanted.split(", ")) if isinstance(value, str) else ""
                raise UsageError(f"{option} of sampler {self.name!r} must be {wanted}, not {shown(value)}{near}")

    def _wanted(self, option: str, default: Option, value: object) -> str | None:
        """What the option should be where it is not, else None."""
        allowed = self.allowed.get(option)
        if allowed is not None:
            return None if value in allowed else str(allowed)
        if isinstance(default, bool):
            return None if isinstance(value, bool) else "true or false"
        if isinstance(default, int):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            return None if whole else "a whole number of at least 0"
        fits = _is_number(value) and cast(float, value) >= 0 and (value != math.inf or default == math.inf)
        return None if fits else "a number of at least 0"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
