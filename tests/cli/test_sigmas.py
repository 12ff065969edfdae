"""`sdxl sigmas`: the same levels as a table, JSON, CSV and a drawing."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support_cli import Sdxl

from sdxl_cli.chart import draw_sigmas
from sdxl_core.diffusion.discretization import edm, legacy_ddpm


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_the_forms_agree_with_the_core(sdxl: Sdxl, kind: str) -> None:
    levels = legacy_ddpm(12) if kind == "ddpm" else edm(12)
    document = json.loads(sdxl("sigmas", "--kind", kind, "--steps", 12, "--json").out)
    assert [level["sigma"] for level in document["levels"]] == list(levels)
    assert [level["index"] for level in document["levels"]] == list(range(13))
    assert document["levels"][0]["timestep"] == 999
    assert document["levels"][-1]["timestep"] is None
    rows = [line.split(",") for line in sdxl("sigmas", "--kind", kind, "--steps", 12, "--csv").out.splitlines()]
    assert rows[0] == ["index", "sigma", "timestep"]
    assert [float(np.float32(row[1])) for row in rows[1:]] == list(levels)
    table = [line.split() for line in sdxl("sigmas", "--kind", kind, "--steps", 12).out.splitlines()]
    assert [row[1] for row in table[1:]] == [row[1] for row in rows[1:]]


def test_options_bend_the_levels(sdxl: Sdxl) -> None:
    line = ["sigmas", "--kind", "edm", "--steps", 5, "--rho", 7, "--sigma-min", 0.1, "--sigma-max", 80, "--json"]
    document = json.loads(sdxl(*line).out)
    assert document["options"] == {"rho": 7.0, "sigma_min": 0.1, "sigma_max": 80.0}
    assert [level["sigma"] for level in document["levels"]] == list(edm(5, 0.1, 80.0, 7.0))


def test_the_plot_is_for_terminals_unless_asked(sdxl: Sdxl) -> None:
    assert "┤" not in sdxl("sigmas").out
    assert "┤" in sdxl("sigmas", "--plot").out


def test_the_drawing_is_a_picture_that_falls(sdxl: Sdxl) -> None:
    result = sdxl("sigmas", "--steps", 20, "--png", "levels.png")
    assert result.code == 0
    with Image.open("levels.png") as image:
        assert image.size == (1200, 800)
    refused = sdxl("sigmas", "--png", "levels.png")
    assert refused.code == 1
    assert "exists already" in refused.err
    assert sdxl("sigmas", "--png", "levels.png", "--overwrite").code == 0


@pytest.mark.parametrize("levels", [(1.0, 0.0), legacy_ddpm(1000), edm(2, 1e-2, 1e4, 3.0)])
def test_any_list_can_be_drawn(levels: tuple[float, ...]) -> None:
    image = np.asarray(Image.open(io.BytesIO(draw_sigmas(levels, "any"))), dtype=int)
    blue = np.argwhere(image[:, :, 2] - image[:, :, 0] > 100)
    first, last = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert len(blue) > 20
    assert first[0] <= last[0] + 2  # a single dot has its leftmost and rightmost pixel anywhere


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--steps", "0"], "between 1 and 1000"),
        (["--steps", "1001"], "between 1 and 1000"),
        (["--kind", "edm", "--sigma-min", "5", "--sigma-max", "1"], "must be positive, finite and rise"),
        (["--kind", "edm", "--rho", "0"], "rho of schedule 'edm' must be a positive number"),
        (["--rho", "3"], "schedule 'legacy_ddpm' has no option 'rho'"),
        (["--json", "--csv"], "exclude each other"),
        (["--kind", "karas"], "did you mean karras"),
        (["--kind", "edm", "--rho", "nan"], "rho"),
    ],
)
def test_levels_that_cannot_be(sdxl: Sdxl, flags: list[str], word: str) -> None:
    result = sdxl("sigmas", *flags)
    assert (result.code, result.out) == (2, "")
    assert word in result.err
    assert "Traceback" not in result.err


def test_a_drawing_needs_the_right_name(sdxl: Sdxl) -> None:
    refused = sdxl("sigmas", "--png", "levels.pdf")
    assert refused.code == 2
    assert "does not end in .png" in refused.err
    assert not Path("levels.pdf").exists()
