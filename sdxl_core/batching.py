"""Plans in groups that are sampled together. Imports no torch."""

from collections.abc import Iterable, Iterator, Sequence

from sdxl_core.diffusion.samplers import levels_asked
from sdxl_core.plan import Plan


def batches(plans: Sequence[Plan], largest: int) -> Iterator[tuple[Plan, ...]]:
    """The plans in their order, in groups of at most `largest` neighbours that can be sampled together."""
    group: list[Plan] = []
    for plan in plans:
        if group and (len(group) == largest or not group[0].shares_batch(plan)):
            yield tuple(group)
            group = []
        group.append(plan)
    if group:
        yield tuple(group)


def network_rows(plan: Plan) -> int | None:
    """Rows that the networks work through for a picture; None where nobody knows beforehand.

    A model call takes one for each side that guidance needs at its level.
    """
    whole, second = plan.schedule(), plan.refiner_sigmas()
    walks = [(plan.sigmas(), whole)]
    if second:
        walks.append((second, whole if plan.switch() is not None else second))
    rows = 0
    for sigmas, schedule in walks:
        levels = levels_asked(plan.sampler.name, sigmas, plan.sampler.options())
        if levels is None:
            return None
        cost = plan.guidance_cost(schedule)
        rows += 3 * len(levels) if plan.edits else sum(cost.at(sigma) for sigma in levels)
    return rows


def total_calls(groups: Iterable[Sequence[Plan]]) -> int | None:
    """Evaluations of the network that groups of `batches` take; None where nobody knows beforehand."""
    total = 0
    for group in groups:
        calls = group[0].model_calls()
        if calls is None:
            return None
        total += calls
    return total
