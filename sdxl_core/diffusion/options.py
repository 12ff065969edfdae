"""What a row of a table takes: the keyword arguments of its function, and what each of them may be."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from sdxl_core.errors import UsageError
from sdxl_core.typed_toml import either, shown
from sdxl_core.types import Option
from sdxl_core.unknown import suggestion


@dataclass(frozen=True, slots=True)
class OneOf:
    """An option that takes one of these values; a number with a point may be written without."""

    values: tuple[Option, ...]

    def __contains__(self, value: object) -> bool:
        kind = type(value)
        return any(
            value == known and (kind is type(known) or (kind is int and isinstance(known, float)))
            for known in self.values
        )

    def __str__(self) -> str:
        return either([f"{value:g}" if isinstance(value, float) else str(value) for value in self.values])


@dataclass(frozen=True, slots=True)
class Between:
    """A number from low to high, both included; with `whole`, a whole one."""

    low: float
    high: float
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if not _is_number(value) or (self.whole and not isinstance(value, int)):
            return False
        return self.low <= cast(float, value) <= self.high

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Positive:
    """A finite number above 0."""

    def __contains__(self, value: object) -> bool:
        return _is_number(value) and 0 < cast(float, value) < math.inf

    def __str__(self) -> str:
        return "a positive number"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A list of numbers."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, tuple):
            return False
        return all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)

    def __str__(self) -> str:
        return "a list of numbers"


Allowed = OneOf | Between | Positive | Numbers
"""What an option may be: a range that knows its members and says what they are."""


def options_of(fn: Callable[..., Any], *reserved: str) -> dict[str, Option]:
    """The keyword-only arguments of a row's function, each with its default; those `reserved` are not options."""
    parameters = inspect.signature(fn).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in reserved}


def check_row_options(
    row: str, taken: Mapping[str, Option], allowed: Mapping[str, Allowed], options: Mapping[str, object]
) -> None:
    """Refuse an option that a row does not take, or a value of the wrong type or outside the option's range.

    Args:
        row: kind and name as an error says them: `sampler 'euler'`.
        taken: the options, each with its default, see `options_of`.
        allowed: what an option may be; one that is not named here is a number of at least 0, finite unless its default
            is not, whole or a truth value where its default is.
        options: the ones that are set.

    Raises:
        UsageError: with a suggestion where there is one.
    """
    for option, value in options.items():
        if option not in taken:
            takes = f"it takes {', '.join(taken)}" if taken else "it takes no options"
            raise UsageError(f"{row} has no option {option!r}{suggestion(option, taken)}", hint=takes)
        default, limit = taken[option], allowed.get(option)
        if not _fits(default, limit, value):
            wanted = range_text(default, limit)
            near = suggestion(value, wanted.split(", ")) if isinstance(value, str) else ""
            raise UsageError(f"{option} of {row} must be {wanted}, not {shown(value)}{near}")


def range_text(default: Option, allowed: Allowed | None) -> str:
    """What an option may be, in words; `allowed` as in `check_row_options`."""
    if allowed is not None:
        return str(allowed)
    if isinstance(default, bool):
        return "true or false"
    return f"a {'whole ' if isinstance(default, int) else ''}number of at least 0"


def _fits(default: Option, allowed: Allowed | None, value: object) -> bool:
    if allowed is not None:
        return value in allowed
    if isinstance(default, bool):
        return isinstance(value, bool)
    if not _is_number(value) or cast(float, value) < 0:
        return False
    return isinstance(value, int) if isinstance(default, int) else value != math.inf or default == math.inf


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
