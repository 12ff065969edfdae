"""The measurement of samplers: errors fall as the methods' orders say, budgets are kept, and ends are told apart."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from answers import Answers
from error import BUDGETS, METHODS, SCHEDULE_NAMES, Method, Run, afforded, calls_of, levels, measure, relative_error
from error_figure import Panel, error_figure, error_map, percent
from error_pages import BESIDE_MICRO, METHODS_SHOWN, SCHEDULE_SHOWN, micro_figures, micro_text
from error_tables import best, by_budget, nearest, rank_correlation, to_csv
from micro_error import BUDGETS as BUDGETS_ASKED
from micro_error import SCHEDULES as SCHEDULES_ASKED
from mixture import BETWEEN, COMPONENTS, Mixture, build_mixture
from mixture_error import ends_error, energy_distance, solve, start, walked
from scipy import stats

from sdxl_cli.marks import Dot, Label, Path
from sdxl_core.diffusion.noise import pure_noise
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.diffusion.schedules import SCHEDULES

EULER, HEUN, DPMPP_2M = Method("euler"), Method("heun"), Method("dpmpp_2m")


def end(law: Mixture, eps: torch.Tensor, method: Method, sigmas: tuple[float, ...]) -> torch.Tensor:
    return walked(law, pure_noise(eps, sigmas[0]), method.sampler, sigmas, method.options)


def test_every_sampler_that_draws_no_noise_is_compared_or_named_as_left_out() -> None:
    plain = {name for name, row in SAMPLERS.items() if not row.stochastic and not row.uncond}
    assert plain - {method.sampler for method in METHODS} == {"ddim", "dpm_adaptive"}
    assert len({method.name for method in METHODS}) == len(METHODS)


def test_what_is_left_out_as_the_same_method_is_the_same() -> None:
    law, eps, sigmas = build_mixture(3.0), start(3, 0), levels("karras", 6)
    assert sigmas is not None
    ends = [end(law, eps, Method(name), sigmas) for name in ("ddim", "euler")]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_budget_is_used_and_never_overdrawn(method: Method) -> None:
    for budget in (12, 24):
        sigmas = afforded(method, "karras", budget)
        assert sigmas is not None
        longer = levels("karras", len(sigmas))
        assert longer is not None
        assert calls_of(method, sigmas) <= budget < calls_of(method, longer)


def test_a_schedule_without_so_long_a_list_has_no_run() -> None:
    assert afforded(EULER, "turbo", 8) is not None
    assert afforded(EULER, "turbo", 64) is None


def test_the_mixture_is_the_law_that_its_network_knows() -> None:
    law = build_mixture()
    assert (law.means.square().mean() + law.variances.mean()).item() == pytest.approx(1)
    between = law.means.square().mean(dim=0).sqrt() / law.stds
    assert between.numpy() == pytest.approx(BETWEEN / math.sqrt(1 - BETWEEN**2))
    # Tweedie: the expected data is x + sigma^2 d ln p / dx, of a density that is written down here once more.
    x, sigma = start(2, 1).requires_grad_(), 0.8
    total = law.variances + sigma**2
    fits = -((x[..., None, :] - law.means) ** 2 / (2 * total)).sum(-1)
    (score,) = torch.autograd.grad(torch.logsumexp(fits, -1).sum(), x)
    torch.testing.assert_close(law(x, sigma).denoised, x + sigma**2 * score)


def test_guidance_asks_for_the_named_components() -> None:
    law, plain = build_mixture(2.0), build_mixture()
    named = Mixture(plain.means[: law.asked_for], plain.stds)
    x = start(4, 2)
    wanted = 2 * named(x, 1.5).denoised - plain(x, 1.5).denoised
    torch.testing.assert_close(law(x, 1.5).denoised, wanted)


def test_data_have_every_component_equally_often() -> None:
    law = build_mixture()
    drawn = law.draw(80 * COMPONENTS, 0)
    nearest = ((drawn[:, None] - law.means) / law.stds).square().sum(-1).argmin(1)
    assert torch.bincount(nearest).tolist() == [80] * COMPONENTS


@pytest.mark.parametrize(("method", "order"), [(EULER, 1), (HEUN, 2), (DPMPP_2M, 2)])
def test_errors_fall_with_the_order_of_the_method(method: Method, order: int) -> None:
    law, eps = build_mixture(), start(8, 3)
    wanted = solve(law, eps)
    runs = list(
        measure(
            [method], ["karras"], (64, 128, 256), lambda m, s, sigmas: relative_error(end(law, eps, m, sigmas), wanted)
        )
    )
    slopes = [math.log(a.error / b.error) / math.log(b.calls / a.calls) for a, b in pairwise(runs)]
    assert slopes[-1] == pytest.approx(order, abs=0.15 * order)


def test_the_ends_are_what_is_left_of_the_error_of_a_list_that_stops_early() -> None:
    law, eps = build_mixture(), start(8, 4)
    wanted = solve(law, eps)
    whole, early = levels("karras", 16), levels("legacy_ddpm", 16)
    assert whole is not None
    assert early is not None
    assert ends_error(law, eps, whole, wanted) < 1e-4
    floor = ends_error(law, eps, early, wanted)
    assert floor == pytest.approx(relative_error(end(law, eps, Method("uni_pc"), early), wanted), rel=0.1)
    assert floor > 0.02


def test_the_error_is_relative_and_of_each_picture_by_itself() -> None:
    wanted = torch.randn((2, 4, 3, 3), generator=torch.Generator().manual_seed(0))
    found = torch.stack([wanted[0] * 1.01, wanted[1] * 1.04])
    assert relative_error(found, wanted) == pytest.approx(0.02, rel=1e-4)
    assert relative_error(100 * found, 100 * wanted) == pytest.approx(0.02, rel=1e-4)


def test_energy_distance_tells_laws_apart() -> None:
    draw = lambda seed, std: std * torch.randn((800, 4), generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert abs(energy_distance(draw(0, 1), draw(1, 1))) < 0.02
    assert energy_distance(draw(0, 1), draw(1, 1.5)) > 0.1


RUNS = (
    Run("euler", "karras", 8, 8, 8, 0.1),
    Run("heun", "karras", 8, 4, 7, 0.31),
    Run("euler", "karras", 16, 16, 16, 0.05),
    Run("heun", "karras", 16, 8, 15, 0.0123),
    Run("euler", "simple", 8, 8, 8, 0.02),
)


def test_tables_hold_the_errors_in_percent_the_best_first() -> None:
    lines = by_budget([run for run in RUNS if run.schedule == "karras"], "method", (8, 16), 16).splitlines()
    assert lines[2:] == ["| `heun` | 31 | 1.2 |", "| `euler` | 10 | 5.0 |"]
    lines = best(RUNS, (8,), [("heun", "karras"), ("heun", "simple")]).splitlines()
    assert lines[2:] == ["| 8 | `euler` on `simple` 2.0 | `euler` on `karras` 10 | `heun` on `karras` 31 | 31 |  |"]
    assert to_csv({"law": RUNS}).splitlines() == [
        "law,sampler,schedule,8 calls,16 calls",
        "law,euler,karras,10,5.0",
        "law,heun,karras,31,1.2",
        "law,euler,simple,2.0,",
    ]
    assert [percent(error) for error in (1.234, 0.0999, 0.0123, 0.00123, 0.000012)] == [
        "123",
        "10",
        "1.2",
        "0.12",
        "0.001",
    ]


def test_figures_are_logarithmic_on_both_axes_and_names_do_not_overlap() -> None:
    straight = {
        name: [(calls, scale / calls) for calls in (8, 16, 32)] for name, scale in zip("abc", (1, 1.01, 4), strict=True)
    }
    marks = error_figure([Panel("one", straight, ("a", "b"))], "title")
    dots = [mark.at for mark in marks if isinstance(mark, Dot)][:3]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0])
    assert dots[1][1] - dots[0][1] == pytest.approx(dots[2][1] - dots[1][1])
    heights = sorted(mark.at[1] for mark in marks if isinstance(mark, Label) and mark.text in "abc")
    assert len(heights) == 2
    assert heights[1] - heights[0] >= 20 - 1e-9
    assert any(isinstance(mark, Path) and len(mark.points) == 3 for mark in marks)


def test_the_map_has_a_cell_for_every_run_and_the_best_row_first() -> None:
    marks, width, height = error_map(
        {(run.schedule, run.method): run.error for run in RUNS if run.budget == 8}, "title"
    )
    places = {mark.text: mark.at for mark in marks if isinstance(mark, Label)}
    assert places["simple"][1] < places["karras"][1] < height
    assert places["euler"][0] < places["heun"][0] < width
    assert {"2.0", "10", "31"} <= set(places)


def test_the_schedule_that_is_left_out_is_another_one() -> None:
    assert set(SCHEDULES) - set(SCHEDULE_NAMES) == {"explicit", "polyexponential"}
    assert levels("polyexponential", 12) == pytest.approx(levels("exponential", 12), rel=1e-6)


def page_of_micro(runs: Sequence[Run], asked: int | None = None) -> dict[str, Any]:
    law = {"checked": 0.0002, "presets": {"20 steps": 0.0123, "30 steps": 0.2}}
    asked = len(runs) if asked is None else asked
    return {
        **{"model": "m.safetensors", "sha256": "0" * 16, "dtype": "float32", "pictures": 2, "asked": asked},
        **{"reference": "1000 steps", "check": "250 steps", "effects": {"bfloat16": 0.004}},
        "laws": {"3": {**law, "runs": [asdict(run) for run in runs]}},
    }


def test_the_page_of_the_network_tells_what_it_is_and_every_error() -> None:
    with_second = [Run(METHODS_SHOWN[1], name, 16, 16, 16, error) for name, error in (("karras", 0.05), ("beta", 0.07))]
    runs = [*(run for run in RUNS if run.schedule == SCHEDULE_SHOWN), *with_second]
    found = page_of_micro(runs)
    mixture = {"5": {"runs": [asdict(replace(run, error=run.error**2)) for run in runs]}}
    text = micro_text(found, mixture)
    assert "| `euler` | 10 | 5.0 |" in text
    assert "| `beta` |  | 7.0 |" in text
    assert "What the preset asks for, 20 steps, ends 1.2 % from the solution; beside it 30 steps 20 %." in text
    assert "is 0.020 % from 250 steps" in text
    assert "1.00 with 16 calls (4 walks)" in text
    named = re.findall(r"samplers/(\w+[.]svg)", text)
    assert (
        sorted(micro_figures(found)) == sorted(named) == ["micro_map.svg", "micro_samplers.svg", "micro_schedules.svg"]
    )


def test_walks_that_are_missing_are_counted() -> None:
    runs = [*RUNS, Run("uni_pc", "karras", 16, 16, 16, 0.05)]
    mixture = {"5": {"runs": []}}
    assert "Not every walk" not in micro_text(page_of_micro(runs), mixture)
    text = micro_text(page_of_micro(runs, asked=len(runs) + 7), mixture)
    assert f"Not every walk has been measured yet: {len(runs)} of {len(runs) + 7}." in text


@pytest.mark.parametrize("budget", BUDGETS_ASKED)
def test_a_run_that_was_stopped_has_figures_of_what_it_knows(budget: int) -> None:
    methods = ["euler", *METHODS_SHOWN]
    first = [Run(name, schedule, 16, 16, 16, 0.1) for schedule in SCHEDULES_ASKED for name in methods]
    more = [] if budget == 16 else [Run("euler", "karras", budget, budget, budget, 0.05)]
    found = page_of_micro([*first, *more])
    curves = [] if budget == 16 else ["micro_samplers.svg", "micro_schedules.svg"]
    assert sorted(micro_figures(found)) == sorted(["micro_map.svg", *curves])
    named = re.findall(r"samplers/(\w+[.]svg)", micro_text(found, {"5": {"runs": []}}))
    assert sorted(named) == sorted(micro_figures(found))


def test_the_nearest_come_first_and_others_with_their_places() -> None:
    lines = nearest(RUNS, (8, 16), [("euler", "karras"), ("euler", "beta")]).splitlines()
    assert lines[2:] == [
        "| 1 | `euler` on `simple` 2.0 | `heun` on `karras` 1.2 |",
        "| 2 | `euler` on `karras` 10 | `euler` on `karras` 5.0 |",
        "| 3 | `heun` on `karras` 31 |  |",
        "| 4 |  |  |",
        "| 5 |  |  |",
        "| `euler` on `karras` | 10 (2 of 3) | 5.0 (2 of 2) |",
        "| `euler` on `beta` |  |  |",
    ]


def test_ranks_agree_whatever_the_numbers_are() -> None:
    errors = [0.3, 0.01, 2.0, 0.5]
    assert rank_correlation(errors, [error**3 for error in errors]) == pytest.approx(1)
    assert rank_correlation(errors, [-error for error in errors]) == pytest.approx(-1)
    assert rank_correlation(errors, [0.1, 0.2, 0.4, 0.3]) == pytest.approx(stats.spearmanr(errors, [1, 2, 4, 3])[0])


def test_an_answer_is_found_once_and_kept(tmp_path: FilePath) -> None:
    path, asked = tmp_path / "answers.jsonl", list[str]()

    def find() -> float:
        asked.append("once")
        return 0.1 + 0.2

    assert Answers(path)("a: b", find) == Answers(path)("a: b", find) == 0.1 + 0.2
    with path.open("a", encoding="utf-8") as file:
        file.write('{"a: c": 0.')  # a run that was killed
    answers = Answers(path)
    assert "a: c" not in answers
    assert answers("a: c", lambda: 7.0) == 7.0
    assert "a: c" in answers
    assert Answers(path)("a: c", find) == 7.0
    assert asked == ["once"]


def test_the_network_is_asked_what_the_mixture_is_asked_too() -> None:
    assert set(SCHEDULES_ASKED) <= set(SCHEDULE_NAMES)
    assert set(BUDGETS_ASKED) <= set(BUDGETS)
    assert {SCHEDULE_SHOWN, *(schedule for _, schedule in BESIDE_MICRO)} <= set(SCHEDULES_ASKED)


def test_the_document_has_a_place_for_every_part_and_every_file_it_names() -> None:
    docs = FilePath(__file__).parents[2] / "docs"
    text = (docs / "samplers.md").read_text(encoding="utf-8")
    for part in ("mixture", "law", "micro"):
        assert text.count(f"<!-- {part}: begin -->") == text.count(f"<!-- {part}: end -->") == 1
    named = re.findall(r"\]\((samplers/[^)]+)\)", text)
    assert len(named) >= 4
    assert [name for name in named if not (docs / name).is_file()] == []
