"""`gen --schedule` and `gen --sigmas`: every schedule by name, and lists from the line, a file, a pipe or a preset."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import tomli
from support_cli import Sdxl

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.schedules import SCHEDULES, resolve_sigmas
from sdxl_core.plan import Plan

LIST = [14.5, 7.75, 3.5, 0.25, 0.0]
TEXT = "14.5,7.75,3.5,0.25,0"

DOCS = Path(__file__).parents[2] / "docs"


def planned(gen: Sdxl, *flags: object) -> Plan:
    """The plan of one picture; its record gives back an equal one."""
    result = gen("a cat", "--seed", 1, "--dry-run", "--json", *flags)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    plan = Plan.from_json(json.dumps(document["plan"]))
    assert list(plan.sigmas()) == document["sigmas"]
    return plan


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"explicit"}))
def test_every_schedule_can_be_asked_for(gen: Sdxl, name: str) -> None:
    plan = planned(gen, "--schedule", name, "--steps", 6)
    assert plan.sigmas() == resolve_sigmas(DiscretizationConfig(name=name), 6, DenoiserConfig())


def test_options_follow_a_schedule(gen: Sdxl) -> None:
    plan = planned(gen, "--schedule", "beta:alpha=0.8,beta=0.5", "--steps", 9)
    assert plan.discretization.options() == {"alpha": 0.8, "beta": 0.5}


def test_a_list_is_walked_from_the_line_a_file_or_a_pipe(gen: Sdxl, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("levels.txt").write_text("# by hand\n14.5 7.75\n3.5,\t.25  # the last step\n0\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    for flag in (TEXT, "levels.txt", "-"):
        plan = planned(gen, "--sigmas", flag)
        assert list(plan.sigmas()) == LIST
        assert plan.steps == 4
    assert planned(gen, "--sigmas", TEXT, "--steps", 4).steps == 4


def test_what_sigmas_emits_is_what_gen_walks(gen: Sdxl, sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = sdxl("sigmas", "--kind", "karras", "--steps", 7, "--emit").out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(emitted.encode())))
    plan = planned(gen, "--sigmas", "-")
    assert plan.sigmas() == resolve_sigmas(DiscretizationConfig(name="karras"), 7, DenoiserConfig())


def test_a_preset_may_hold_a_list(gen: Sdxl, sdxl: Sdxl, tiny_folder: Path) -> None:
    table = f"base = '{tiny_folder}/tiny-base.toml'\n[recipe]\nsteps = 4\n[recipe.discretization]\nname = 'explicit'\n"
    Path("mine.toml").write_text(f"{table}sigmas = {LIST}\n")
    line = ["gen", "a cat", "--preset", "./mine.toml", "--seed", 1, "--device", "cpu", "--dry-run", "--json"]
    assert json.loads(sdxl(*line).out)["sigmas"] == LIST
    refused = sdxl(*line, "--steps", 9)
    assert (refused.code, refused.out) == (2, "")
    assert "takes 4 steps, not 9" in refused.err
    printed = tomli.loads(gen("--sigmas", TEXT, "--print-config").out)
    assert printed["recipe"]["discretization"] == {"name": "explicit", "sigmas": LIST}


def test_a_list_that_keeps_some_noise_is_said(gen: Sdxl) -> None:
    result = gen("a cat", "--seed", 1, "--sigmas", "14.6,3,0.5", "--dry-run")
    assert result.code == 0
    assert "warning: the list ends at 0.5, so noise of that level stays" in result.err


@pytest.mark.parametrize("flags", [["--sigmas", TEXT], ["--schedule", "kl_optimal_a1111", "--steps", "2"]])
def test_a_picture_says_which_levels_it_walked(gen: Sdxl, sdxl: Sdxl, flags: list[str]) -> None:
    result = gen("a cat", "--seed", 1, "--size", "64x64", *flags)
    assert result.code == 0, result.err
    record = json.loads(sdxl("inspect", result.paths[0], "--json").out)["record"]
    assert record["sigmas"] == list(Plan.from_json(json.dumps(record["plan"])).sigmas())
    assert record["plan"]["discretization"]["name"] in ("explicit", "kl_optimal_a1111")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sigmas", "5,6,0"], ["must decrease, but level 0 is 5.0 and level 1 6.0"]),
        (["--sigmas", "5,5,0"], ["must decrease"]),
        (["--sigmas", "5"], ["at least two noise levels, not 1"]),
        (["--sigmas", "5,-1"], ["noise level 1 is -1.0"]),
        (["--sigmas", "5,1e999,0"], ["noise level 1 is inf, not a finite number"]),
        (["--sigmas", "5,1-2,0"], ["noise level 1 is '1-2', not a number"]),
        (["--sigmas", "9,nan,0"], ["noise level 1 is nan, not a finite number"]),
        (["--sigmas", "nine"], ["'nine' is no list of numbers, and no file to read: No such file"]),
        (["--sigmas", ""], ["no list of numbers"]),
        (["--sigmas", "a\0b"], ["no list of numbers"]),
        (["--sigmas", ".."], ["Is a directory"]),
        (["--sigmas", "bad.txt"], ["bad.txt: noise level 1 is 'nine', not a number"]),
        (["--sigmas", "none.txt"], ["No such file"]),
        (["--sigmas", "many.txt"], ["more than 1001 noise levels"]),
        (["--sigmas", TEXT, "--steps", "5"], ["--sigmas takes 4 steps, --steps says 5"]),
        (["--sigmas", TEXT, "--schedule", "karras"], ["--schedule and --sigmas exclude each other"]),
        (["--sigmas", "-", "--prompts", "-"], ["standard input can be read only once"]),
        (["--schedule", "karras:rho=0"], ["--schedule: rho of schedule 'karras' must be a positive number, not 0"]),
        (["--schedule", "karras:sigma_min=20"], ["sigma_min 20", "must be positive and rise"]),
        (["--schedule", "normal:rho=3"], ["--schedule: schedule 'normal' has no option 'rho'"]),
        (["--schedule", "beta", "--steps", "200"], ["cannot give 200 distinct levels", "take fewer steps"]),
        (["--schedule", "explicit"], ["no levels of its own", "--sigmas"]),
        (["--schedule", "laplace:mu=50"], ["distinct levels", "take fewer steps, or other options"]),
        (["--schedule", "karras:rho=7,rho=5"], ["sets rho twice"]),
        (["--sigmas", "1e39,1,0"], ["noise level 0 is inf"]),
        (["--sigmas", "1.00000000001,1,0"], ["must decrease, but level 0 is 1.0 and level 1 1.0"]),
    ],
)
def test_levels_that_cannot_be_walked(gen: Sdxl, flags: list[str], words: list[str]) -> None:
    Path("bad.txt").write_text("9 nine 0")
    Path("many.txt").write_text(" ".join(str(2000 - i) for i in range(1500)))
    result = gen("a cat", *flags)
    assert (result.code, result.out) == (2, "")
    assert [line.startswith("error: ") for line in result.err.splitlines()].count(True) == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def test_the_page_in_docs_is_the_tables_own() -> None:
    made = runpy.run_path(str(DOCS / "make_schedules_md.py"))["document"]()
    assert made == (DOCS / "schedules.md").read_text(encoding="utf-8")
