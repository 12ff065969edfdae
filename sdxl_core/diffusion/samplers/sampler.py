"""One row of the table of samplers, and what its options may be."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sdxl_core.diffusion.options import Allowed, check_row_options, options_of
from sdxl_core.types import Option, Step


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
        allowed: what an option may be where the rules of `check_row_options` do not say enough.
        uncond: a CFG++ form: reads the unconditional prediction, which guidance then makes at scale 1, too.
    """

    fn: Callable[..., Iterator[Step]]
    order: int
    calls: int | None
    stochastic: bool
    source: str
    allowed: Mapping[str, Allowed] = field(default_factory=dict)
    uncond: bool = False

    @property
    def name(self) -> str:
        """What presets and the command line call it."""
        return self.fn.__name__

    @property
    def options(self) -> dict[str, Option]:
        """The options it takes, each with its default."""
        return options_of(self.fn, "noise")

    @property
    def summary(self) -> str:
        """What it is: the beginning of its docstring, up to the first colon."""
        return (inspect.getdoc(self.fn) or "").partition(":")[0]

    def check(self, options: Mapping[str, object]) -> None:
        """Refuse an option that it does not take, or a value of the wrong type or outside the option's range.

        Raises:
            UsageError: with a suggestion where there is one.
        """
        check_row_options(f"sampler {self.name!r}", self.options, self.allowed, options)
