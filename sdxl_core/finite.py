"""Latents are looked at before they are handed on, without a device that waits for it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sdxl_core.errors import NumericsError
from sdxl_core.ops.transfer import arriving
from sdxl_core.plan import Plan
from sdxl_core.types import Step

T = TypeVar("T")


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; each is handed on when the next one has been made, the last one when there is no other.

    What making an item raises is raised in its turn, after the item before.
    """
    waiting: list[T] = []
    source = iter(items)
    while True:
        try:
            waiting.append(next(source))
        except StopIteration:
            yield from waiting
            return
        except Exception:
            yield from waiting
            raise
        if len(waiting) == 2:
            yield waiting.pop(0)


def checked(
    steps: Iterator[Step], plans: Sequence[Plan], dtype: torch.dtype, count: int, *, ahead: bool
) -> Iterator[Step]:
    """The steps of a walk, each only if its latents are finite.

    Args:
        steps: a row a plan.
        plans: whose seeds an error names.
        dtype: of the network, for the hint.
        count: of the steps.
        ahead: begin the next step before this one is looked at, so that the device has always something to do: for
            one that computes beside this thread. A step is still handed on only when it is done.

    Raises:
        NumericsError: names the seeds and the step.
    """
    measured = ((step, arriving(_largest(step.x))) for step in steps)
    for step, largest in one_ahead(measured) if ahead else measured:
        _check(step, largest(), plans, dtype, count)
        yield step


def _largest(x: Tensor) -> Tensor:
    """(b,) the largest magnitude of each row; nan where it has one."""
    return x.abs().amax(dim=(1, 2, 3))


def _check(step: Step, largest: Tensor, plans: Sequence[Plan], dtype: torch.dtype, count: int) -> None:
    finite = largest.isfinite().tolist()
    if all(finite):
        return
    seeds = ", ".join(str(plan.seed) for plan, good in zip(plans, finite, strict=True) if not good)
    half = dtype is torch.float16
    raise NumericsError(
        f"the latent of seed {seeds} is not finite after step {step.index + 1} of {count}",
        hint="try --dtype bfloat16 or float32" if half else "the model file may be damaged: see `sdxl inspect`",
    )
