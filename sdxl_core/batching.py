"""Plans in groups that are sampled together. Imports no torch."""

from collections.abc import Iterable, Iterator, Sequence

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


def total_calls(groups: Iterable[Sequence[Plan]]) -> int | None:
    """Evaluations of the network that groups of `batches` take; None where nobody knows beforehand."""
    total = 0
    for group in groups:
        calls = group[0].model_calls()
        if calls is None:
            return None
        total += calls
    return total
