"""The judge of micro's pictures: it must be right on pictures whose content is known, and able to say no."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import choose_cases, with_crops
from drawing import compose, fit
from metric import References, centre, sharpness
from PIL import Image
from report import grid, table, write_docs
from support_drawings import COLOURS, SHAPES, SIDE, draw_icon, write_shapes
from test_micro_data import rows


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def references(shapes: Path) -> References:
    return References(shapes)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_on_real_pictures_the_judge_is_right(shapes: Path, references: References) -> None:
    single = [row for row in rows(shapes) if row["kind"] == "single"]
    things, backgrounds, styles = [], [], []
    for row in single:
        picture = pixels_of(shapes / row["file_name"])
        things.append(references.thing(picture, row["style"], row["background"]) == row["thing"])
        backgrounds.append(references.background(picture) == row["background"])
        styles.append(references.style(picture, row["thing"], row["background"]) == row["style"])
    assert np.mean(things) >= 0.98
    assert all(backgrounds)
    assert np.mean(styles) >= 0.98


def test_both_halves_of_a_pair_are_recognised(shapes: Path, references: References) -> None:
    for row in rows(shapes):
        if row["kind"] == "pair":
            picture = pixels_of(shapes / row["file_name"])
            halves = {"thing": picture[:, : SIDE // 2], "thing_2": picture[:, SIDE // 2 :]}
            for key, half in halves.items():
                assert references.thing(half, row["style"], row["background"], half=True) == row[key]


def test_the_judge_says_what_is_there_and_not_what_was_asked_for(references: References) -> None:
    wrong = compose((SIDE, SIDE), "blue", [(fit(draw_icon("ring", COLOURS["noto"][2]), 55, 55), 32, 32)])
    assert references.thing(np.asarray(wrong), "noto", "blue") == "ring"
    assert references.background(np.asarray(wrong)) == "blue"


def test_distances_to_one_thing_are_those_of_the_whole_comparison(references: References) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    whole = references.distances(picture, "flat", "green")
    alone = [references.distances(picture, "flat", "green", only=i)[0] for i in range(len(SHAPES))]
    np.testing.assert_allclose(alone, whole, rtol=1e-4)


def test_the_centre_follows_the_drawing_pixel_by_pixel() -> None:
    disc = fit(draw_icon("disc", (200, 40, 40)), 30, 30)
    found = [centre(np.asarray(compose((SIDE, SIDE), "blue", [(disc, 20 + d, 30)]))) for d in (0, 7, 15)]
    xs = [c[0] for c in found if c is not None]
    assert np.diff(xs).tolist() == [7.0, 8.0]
    assert centre(np.asarray(compose((SIDE, SIDE), "blue", []))) is None


def test_enlarged_small_pictures_are_less_sharp() -> None:
    icon = draw_icon("cross", (200, 40, 40))
    values = []
    for size in (16, 24, 32, 64):
        small = compose((size, size), "white", [(fit(icon, 0.8 * size, 0.8 * size), size / 2, size / 2)])
        values.append(sharpness(np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))))
    assert values == sorted(values)
    assert values[-1] > 5 * values[0]


def test_the_choice_of_prompts_is_fixed_and_keeps_the_sets_apart(shapes: Path, references: References) -> None:
    cases = choose_cases(shapes, references.phrases, 6)
    assert cases == choose_cases(shapes, references.phrases, 6)
    kept_out = {(r["thing"], r["style"], r["background"]) for r in rows(shapes, "heldout.jsonl")}
    trained = {(c.things[0], c.style, c.background) for c in cases.trained}
    assert len(trained) == len(cases.trained) == 18
    assert {c.style for c in cases.trained} == {"noto", "flat"}
    assert not trained & kept_out
    assert {(c.things[0], c.style, c.background) for c in cases.held_out} <= kept_out


def test_crop_cases_differ_in_what_the_model_is_told_alone(shapes: Path, references: References) -> None:
    first = choose_cases(shapes, references.phrases, 6).trained[:2]
    crops = with_crops(first, SIDE)
    assert list(crops["left"]) == [0, 4, 8, 12, 16]
    assert [c.crop for c in crops["left"][8]] == [(0, 8)] * 2
    assert [c.crop for c in crops["top"][8]] == [(8, 0)] * 2
    assert [c.original_size for c in crops["top"][8]] == [(80, 64)] * 2
    assert [replace(c, original_size=None, crop=(0, 0)) for c in crops["left"][16]] == first


def test_figures_replace_the_ones_before_and_leave_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nbelow\n", encoding="utf-8")
    figures = table(["a", "b"], [[1, 0.25]])
    write_docs(page, figures)
    once = page.read_text(encoding="utf-8")
    assert (
        once == "above\n<!-- figures: begin -->\n| a | b |\n| --- | --- |\n| 1 | 0.2 |\n<!-- figures: end -->\nbelow\n"
    )
    write_docs(page, figures)
    assert page.read_text(encoding="utf-8") == once
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no"):
        write_docs(page, figures)


def test_the_grid_holds_every_picture_unchanged() -> None:
    pictures = [np.full((SIDE, SIDE, 3), 10 * i, dtype=np.uint8) for i in range(9)]
    sheet = np.asarray(grid(pictures, [f"a thing with a rather long name {i}" for i in range(9)]))
    assert (sheet[6 : 6 + SIDE, 6 + 70 : 76 + SIDE] == 10).all()
    assert (sheet[6 + 96 : 6 + 96 + SIDE, 6 : 6 + SIDE] == 80).all()
