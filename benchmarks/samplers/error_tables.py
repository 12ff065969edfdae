"""Tables of errors for docs/samplers.md, and all of them as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from error import Run
from error_figure import percent
from report import table

BEST = 3
NEAREST = 5


def by_budget(runs: Sequence[Run], key: str, budgets: Sequence[int], sort_at: int) -> str:
    """A row for each method (or schedule), a column for each budget; errors in percent, the best at `sort_at` first."""
    rows: dict[str, dict[int, float]] = {}
    for run in runs:
        rows.setdefault(getattr(run, key), {})[run.budget] = run.error
    ordered = sorted(rows, key=lambda name: rows[name].get(sort_at, float("inf")))
    body = [[f"`{name}`", *(_cell(rows[name].get(budget)) for budget in budgets)] for name in ordered]
    return table([key, *(f"{budget} calls" for budget in budgets)], body)


def best(runs: Sequence[Run], budgets: Sequence[int], beside: Sequence[tuple[str, str]]) -> str:
    """The best methods with schedules for each budget, and what some well-known ones give there."""
    body = []
    for budget in budgets:
        there = sorted((run for run in runs if run.budget == budget), key=lambda run: run.error)
        pairs = {(run.method, run.schedule): run.error for run in there}
        first = [f"`{run.method}` on `{run.schedule}` {percent(run.error)}" for run in there[:BEST]]
        body.append([budget, *first, *(_cell(pairs.get(pair)) for pair in beside)])
    head = ["calls", "best", "second", "third", *(f"`{method}` on `{schedule}`" for method, schedule in beside)]
    return table(head, body)


def nearest(runs: Sequence[Run], budgets: Sequence[int], beside: Sequence[tuple[str, str]]) -> str:
    """A column for each budget: its `NEAREST` best methods with schedules, then the places of some others."""
    columns = []
    for budget in budgets:
        there = sorted((run for run in runs if run.budget == budget), key=lambda run: run.error)
        first = [f"`{run.method}` on `{run.schedule}` {percent(run.error)}" for run in there[:NEAREST]]
        places = {
            (run.method, run.schedule): f"{percent(run.error)} ({i} of {len(there)})" for i, run in enumerate(there, 1)
        }
        columns.append([*first, *[""] * (NEAREST - len(first)), *(places.get(pair, "") for pair in beside)])
    names = [*map(str, range(1, NEAREST + 1)), *(f"`{method}` on `{schedule}`" for method, schedule in beside)]
    return table(["", *(f"{budget} calls" for budget in budgets)], list(zip(names, *columns, strict=True)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Of two lists of numbers of the same things, from -1 (backwards) through 0 to 1 (in the same order).

    Source: Spearman 1904, The proof and measurement of association between two things.
    """
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def ends(ends_by_schedule: Mapping[str, Mapping[str, float]], budgets: Sequence[int]) -> str:
    """What the ends of a schedule alone cost, the best first."""
    ordered = sorted(ends_by_schedule, key=lambda name: list(ends_by_schedule[name].values())[-1:])
    body = [[f"`{name}`", *(_cell(ends_by_schedule[name].get(str(b))) for b in budgets)] for name in ordered]
    return table(["schedule", *(f"{budget} calls" for budget in budgets)], body)


def law(rows: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> str:
    """Distance to the data, in units of that of other data, and the spread of what is finest."""
    floor = next(row for row in rows if row["budget"] == 0)
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["sampler"], {})[row["budget"]] = row

    def cells(name: str) -> list[str]:
        there = [found[name].get(budget) for budget in budgets]
        return [f"{r['distance']:.3f}, {100 * (r['finest'] - 1):+.0f} %" if r else "" for r in there]

    ordered = sorted(
        (name for name in found if name != floor["sampler"]), key=lambda name: found[name][max(found[name])]["distance"]
    )
    body = [[f"`{name}`", *cells(name)] for name in ordered]
    other = f"{floor['distance']:.3f}, {100 * (floor['finest'] - 1):+.0f} %"
    return table(
        ["sampler", *(f"{budget} calls" for budget in budgets)], [*body, ["other data", *[other] * len(budgets)]]
    )


def to_csv(laws: Mapping[str, Sequence[Run]]) -> str:
    """Every error of every law in percent, a column for each budget of calls."""
    budgets = sorted({run.budget for runs in laws.values() for run in runs})
    rows: dict[tuple[str, str, str], dict[int, float]] = {}
    for law, runs in laws.items():
        for run in runs:
            rows.setdefault((law, run.method, run.schedule), {})[run.budget] = run.error
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["law", "sampler", "schedule", *(f"{budget} calls" for budget in budgets)])
    for key, errors in rows.items():
        writer.writerow([*key, *(_cell(errors.get(budget)) for budget in budgets)])
    return text.getvalue()


def _cell(error: float | None) -> str:
    return "" if error is None else percent(error)
