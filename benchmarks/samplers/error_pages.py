"""What docs/samplers.md shows of the measurements: its figures, and the text between its marks."""

from collections.abc import Mapping, Sequence
from typing import Any

import error_tables
import mixture_error
from error import BUDGETS, Run
from error_figure import HEIGHT, Panel, error_figure, error_map, figure_width, percent

from sdxl_cli.marks import to_svg

FOLDER = "samplers"  # of the figures, beside the document
SAMPLERS_SHOWN = ("euler", "heun", "dpmpp_2m", "dpmpp_3m_sde:eta=0", "deis", "ipndm", "sa_solver:eta=0", "uni_pc")
SCHEDULES_SHOWN = (
    "legacy_ddpm",
    "normal",
    "beta",
    "karras",
    "exponential",
    "kl_optimal",
    "align_your_steps",
    "gits",
)
SCHEDULE_SHOWN, METHODS_SHOWN = "karras", ("dpmpp_2m", "uni_pc")
BESIDE = (("euler", "legacy_ddpm"), ("dpmpp_2m", "karras"))
BESIDE_MICRO = (("uni_pc", "exponential"), ("uni_pc", "karras"), *reversed(BESIDE))
SORTED_AT = 16  # calls; also those of the map
GUIDED = "5"
_MICRO_FIGURES = {
    "micro_map.svg": f"Error of micro for every sampler and schedule with {SORTED_AT} calls",
    "micro_samplers.svg": f"Error of micro against model calls for every sampler on {SCHEDULE_SHOWN}",
    "micro_schedules.svg": "Error of micro against model calls for every schedule",
}


def runs_of(found: Mapping[str, Any]) -> list[Run]:
    """The runs of one law."""
    return [Run(**run) for run in found["runs"]]


def _picked(runs: Sequence[Run], **where: str) -> list[Run]:
    return [run for run in runs if all(getattr(run, name) == value for name, value in where.items())]


def _panel(runs: Sequence[Run], key: str, named: Sequence[str], title: str) -> Panel:
    """A curve for each value of `key`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        found.setdefault(getattr(run, key), []).append((run.calls, run.error))
    return Panel(title, found, named)


def _samplers_panel(runs: Sequence[Run], title: str) -> Panel:
    return _panel(_picked(runs, schedule=SCHEDULE_SHOWN), "method", SAMPLERS_SHOWN, title)


def _schedules_panel(runs: Sequence[Run], method: str, title: str) -> Panel:
    return _panel(_picked(runs, method=method), "schedule", SCHEDULES_SHOWN, title)


def _drawn(panels: Sequence[Panel], title: str) -> bytes:
    return to_svg(error_figure(panels, title), figure_width(len(panels)), HEIGHT)


def _figures(name: str, laws: Mapping[str, Sequence[Run]], guided: str) -> dict[str, bytes]:
    """File name -> SVG: samplers at each scale of guidance, schedules at one, and all of both with one budget.

    Curves only where a scale was measured with more than one number of calls.
    """
    title = "The mixture" if name == "mixture" else name
    titles = {"1": "without guidance"}
    found = {}
    curves = {scale: runs for scale, runs in laws.items() if len({run.budget for run in runs}) > 1}
    if curves:
        samplers = [_samplers_panel(runs, titles.get(scale, f"guidance {scale}")) for scale, runs in curves.items()]
        found[f"{name}_samplers.svg"] = _drawn(samplers, f"{title}: every sampler on {SCHEDULE_SHOWN}")
    if guided in curves:
        schedules = [
            _schedules_panel(curves[guided], method, f"{method}, guidance {guided}") for method in METHODS_SHOWN
        ]
        found[f"{name}_schedules.svg"] = _drawn(schedules, f"{title}: every schedule")
    marks, width, height = error_map(
        _by_pair(laws[guided], SORTED_AT), f"{title}, guidance {guided}: error in percent after {SORTED_AT} model calls"
    )
    return {**found, f"{name}_map.svg": to_svg(marks, width, height)}


def mixture_figures(found: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> SVG."""
    return _figures("mixture", {scale: runs_of(part) for scale, part in found.items()}, GUIDED)


def mixture_text(found: Mapping[str, Any]) -> str:
    """Figures and tables of the mixture."""
    free, guided = (runs_of(found[scale]) for scale in ("1", GUIDED))
    checks = " and ".join(f"{part['checked']:.0e}" for part in found.values())
    adaptive = "; ".join(
        f"rtol {row['rtol']:g}: {row['calls']:.0f} calls, {percent(row['error'])} %"
        for row in found[GUIDED]["adaptive"]
    )
    free_karras, guided_karras = (_picked(runs, schedule=SCHEDULE_SHOWN) for runs in (free, guided))
    parts = [
        f"All errors are in percent. The reference agrees with that of another method ({mixture_error.CHECK.name}, as "
        f"many steps) to {checks}, without guidance and with.",
        f"![Error against model calls for every sampler on {SCHEDULE_SHOWN}]({FOLDER}/mixture_samplers.svg)",
        f"The best of all samplers and schedules, guidance {GUIDED}:",
        error_tables.best(guided, BUDGETS, BESIDE),
        "The same without guidance:",
        error_tables.best(free, BUDGETS, BESIDE),
        f"Every sampler on {SCHEDULE_SHOWN}, guidance {GUIDED}:",
        error_tables.by_budget(guided_karras, "method", BUDGETS, SORTED_AT),
        "Without guidance:",
        error_tables.by_budget(free_karras, "method", BUDGETS, SORTED_AT),
        f"`dpm_adaptive` at guidance {GUIDED} and several tolerances, pictures one by one: {adaptive}.",
        f"![Error against model calls for every schedule]({FOLDER}/mixture_schedules.svg)",
        f"Every schedule with {METHODS_SHOWN[0]}, guidance {GUIDED}:",
        error_tables.by_budget(_picked(guided, method=METHODS_SHOWN[0]), "schedule", BUDGETS, SORTED_AT),
        f"What the ends of a list cost by themselves, guidance {GUIDED}: an exact walk from its first level "
        "to its last above 0, and the step to 0 from there, if it has one. A sampler comes below it by luck alone.",
        error_tables.ends(found[GUIDED]["ends"], mixture_error.ENDS_BUDGETS),
        f"![Error of every sampler on every schedule with {SORTED_AT} calls]({FOLDER}/mixture_map.svg)",
        f"All of it as numbers: [errors.csv]({FOLDER}/errors.csv).",
    ]
    return "\n\n".join(parts)


def micro_figures(found: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> SVG."""
    laws = {scale: runs_of(part) for scale, part in found["laws"].items()}
    return _figures("micro", laws, next(iter(laws)))


def micro_text(found: Mapping[str, Any], mixture: Mapping[str, Any]) -> str:
    """Figures and tables of the trained network, and how far the mixture foretells them."""
    ((guidance, law),) = found["laws"].items()
    guided = runs_of(law)
    figures = micro_figures(found)
    budgets = sorted({run.budget for run in guided})
    own, *others = law["presets"].items()
    effects = "; ".join(f"{name} {percent(error)} %" for name, error in found["effects"].items())
    missing = found["asked"] - len(guided)
    parts = [
        f"{found['model']}, sha256 `{found['sha256']}`, {found['dtype']}, {found['pictures']} prompts, picture i from "
        f"seed i. The reference, {found['reference']}, is "
        f"{percent(law['checked'])} % from {found['check']}. All errors are in percent.",
        *([f"Not every walk has been measured yet: {len(guided)} of {found['asked']}."] if missing else []),
        *(f"![{alt}]({FOLDER}/{name})" for name, alt in _MICRO_FIGURES.items() if name in figures),
        f"The nearest of all, guidance {guidance}, and the place of some that are well known:",
        error_tables.nearest(guided, budgets, BESIDE_MICRO),
        f"Every sampler on {SCHEDULE_SHOWN}, guidance {guidance}:",
        error_tables.by_budget(_picked(guided, schedule=SCHEDULE_SHOWN), "method", budgets, SORTED_AT),
        f"Every schedule with {METHODS_SHOWN[1]}, guidance {guidance}:",
        error_tables.by_budget(_picked(guided, method=METHODS_SHOWN[1]), "schedule", budgets, SORTED_AT),
        f"What the preset asks for, {own[0]}, ends {percent(own[1])} % from the solution; beside it "
        + "; ".join(f"{name} {percent(error)} %" for name, error in others)
        + ".",
        _foretold(guided, runs_of(mixture[GUIDED])),
        f"For comparison, how far two walks of {own[0]} are apart that differ in one thing alone: {effects}.",
    ]
    return "\n\n".join(parts)


def _by_pair(runs: Sequence[Run], budget: int) -> dict[tuple[str, str], float]:
    return {(run.schedule, run.method): run.error for run in runs if run.budget == budget}


def _foretold(micro: Sequence[Run], mixture: Sequence[Run]) -> str:
    """How far the order of the walks is that of the mixture."""
    said = []
    for budget in sorted({run.budget for run in micro}):
        here, there = _by_pair(micro, budget), _by_pair(mixture, budget)
        pairs = [pair for pair in here if pair in there]
        if len(pairs) > 2:
            first, second = ([errors[pair] for pair in pairs] for errors in (here, there))
            said.append(f"{error_tables.rank_correlation(first, second):.2f} with {budget} calls ({len(pairs)} walks)")
    return (
        f"Does the mixture (guidance {GUIDED}) foretell which walk ends nearer? Rank correlation of the errors here "
        f"and there, 1 where the order is the same and 0 where one says nothing about the other: {', '.join(said)}."
    )
