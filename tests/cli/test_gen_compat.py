"""Pictures as other programs draw them, where programs differ."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support_cli import Sdxl

from sdxl_core.picture_files import read_record


def pixels(path: Path) -> NDArray[np.int64]:
    return np.asarray(Image.open(path)).astype(np.int64)


def plans(text: str) -> list[dict[str, Any]]:
    return [json.loads(line)["plan"] for line in text.splitlines()]


def test_dry_run_lists_every_difference_with_what_it_would_be(gen: Sdxl) -> None:
    out = gen("a cat", "--compat", "comfy", "--dry-run").out
    rows = {line.split("  ")[0].strip(): " ".join(line.split()) for line in out.splitlines()}
    assert "as comfy value default" in rows["as comfy"]
    assert "at the model's highest level, else x sigma noise x sqrt(1 + sigma^2)" in rows["start"]
    assert "told the nearest trained timestep sigma becomes the nearest trained level" in rows["snap"]
    assert rows["drop_penultimate"].endswith("all levels the same")
    assert "one generator draws for all pictures of a prompt" in rows["batch_noise"]
    assert rows["noise"].endswith("the same")
    assert rows["empty_negative"] == "empty_negative encode zeros"
    assert rows["schedule"].endswith("the same")
    assert "as comfy" not in gen("a cat", "--dry-run").out


def test_dry_run_says_what_a_schedule_is_called_here(gen: Sdxl) -> None:
    out = gen("a cat", "--compat", "a1111", "--schedule", "beta", "--dry-run").out
    assert "schedule beta_a1111 beta" in " ".join(out.split())


def test_a_picture_remembers_whose_conventions_it_has(gen: Sdxl) -> None:
    result = gen("a cat", "--seed", 3, "-n", 2, "--steps", 1, "--compat", "comfy", "-o", "{seed}.png")
    assert result.code == 0, result.err
    assert [path.name for path in result.paths] == ["3.png", "3-2.png"]
    records = [read_record(path).record for path in result.paths]
    assert [r["plan"]["batch_row"] for r in records if r] == [0, 1]
    assert [r["plan"]["conventions"]["snap"] for r in records if r] == ["index", "index"]
    assert [r["plan"]["compat"] for r in records if r] == ["comfy", "comfy"]


@pytest.mark.parametrize("program", ["a1111", "comfy", "diffusers", "sgm"])
def test_a_row_is_the_same_alone_and_in_a_batch(gen: Sdxl, program: str) -> None:
    line = ["a cat", "--seed", 3, "-n", 2, "--steps", 2, "--sampler", "euler_ancestral", "--compat", program]
    one, two = gen(*line, "-b", 1, "-o", "one"), gen(*line, "-b", 2, "-o", "two")
    assert one.code == two.code == 0, two.err
    for a, b in zip(one.paths, two.paths, strict=True):
        assert read_record(a).record == read_record(b).record
        assert np.abs(pixels(a) - pixels(b)).max() <= 1  # kernels round otherwise for another batch size
    assert np.abs(pixels(one.paths[0]) - pixels(one.paths[1])).max() > 10


def test_a_recipe_can_name_a_program(sdxl: Sdxl, tiny_folder: Path, tmp_path: Path) -> None:
    preset = tmp_path / "like.toml"
    preset.write_text(f"base = '{tiny_folder}/tiny-base.toml'\n[recipe]\ncompat = 'a1111'\n")
    (plan,) = plans(sdxl("gen", "a cat", "-p", preset, "--dry-run", "--json").out)
    assert (plan["compat"], plan["conventions"]["noise"]) == ("a1111", "cuda")
    (plan,) = plans(sdxl("gen", "a cat", "-p", preset, "--compat", "sgm", "--dry-run", "--json").out)
    assert plan["compat"] == "sgm"


def test_an_unknown_program_is_one_clear_error(gen: Sdxl) -> None:
    result = gen("a cat", "--compat", "a111", "--dry-run")
    assert result.code == 2
    assert "unknown program 'a111'; did you mean a1111?" in result.err
    assert "one of: a1111, comfy, diffusers, sgm" in result.err


def test_the_page_in_docs_is_the_tables_own() -> None:
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "make_compat_md.py"))["document"]()
    assert made == (docs / "compat.md").read_text(encoding="utf-8")
