"""The recipe of micro's data: what is drawn, what is said, and what is kept out."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli
from build_data import BEST_SCORE, SHARES, is_held_out, place_one, split_combos, write_set
from captions import plain_caption, write_caption
from drawing import PALETTE, compose, degrade, visible_share
from PIL import Image
from sources import NAMES, STYLES, load_names
from support_drawings import COLOURS, SHAPES, SIDE, draw_icon, icons, things, write_shapes
from things import CORE_THINGS, TABLE, Thing


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def rows(folder: Path, name: str = "metadata.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(shapes: Path, tmp_path: Path) -> None:
    again, other = write_shapes(tmp_path / "again"), write_shapes(tmp_path / "other", seed=1)
    names = sorted(p.relative_to(shapes) for p in shapes.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((shapes / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert (shapes / "metadata.jsonl").read_bytes() != (other / "metadata.jsonl").read_bytes()


def test_metadata_tells_the_true_size_and_the_promised_mix(shapes: Path) -> None:
    listed = rows(shapes)
    for row in listed:
        with Image.open(shapes / row["file_name"]) as image:
            assert (image.width, image.height) == (row["width"], row["height"])
    assert Counter(row["kind"] for row in listed) == {kind: 300 * share for kind, share in SHARES.items()}
    by_kind: dict[str, set[tuple[int, int]]] = {}
    for row in listed:
        by_kind.setdefault(row["kind"], set()).add((row["width"], row["height"]))
    assert by_kind["single"] == by_kind["pair"] == {(SIDE, SIDE)}
    assert all(SIDE // 4 <= w == h <= SIDE // 2 for w, h in by_kind["small"])
    assert all(min(size) == SIDE < max(size) for size in by_kind["wide"])
    assert {w > h for w, h in by_kind["wide"]} == {True, False}


def test_what_is_kept_out_is_nowhere_in_training_not_even_in_a_pair(shapes: Path) -> None:
    kept_out = {(r["thing"], r["style"], r["background"]) for r in rows(shapes, "heldout.jsonl")}
    assert kept_out
    drawn = {(r[key], r["style"], r["background"]) for r in rows(shapes) for key in ("thing", "thing_2") if key in r}
    assert not kept_out & drawn


def test_about_a_tenth_is_kept_out_and_never_on_white() -> None:
    combos = [(f"thing {i}", style, background) for i in range(300) for style in STYLES for background in PALETTE]
    share = sum(is_held_out(*combo) for combo in combos) / len(combos)
    assert 0.08 < share < 0.12
    assert not any(is_held_out(*combo) for combo in combos if combo[2] == "white")


def test_a_thing_that_cannot_be_seen_on_a_colour_is_not_drawn_there() -> None:
    red = draw_icon("disc", PALETTE["red"])
    assert visible_share(red, "red") == 0
    assert visible_share(red, "blue") == 1
    disc = things()[:1]
    training, held_out = split_combos(disc, {("disc", "noto"): red, ("disc", "flat"): red})
    assert len(training) + len(held_out) == 2 * (len(PALETTE) - 1)
    assert "red" not in {background for _, _, background in training + held_out}


def test_worse_copies_are_the_same_pictures_with_lower_scores(shapes: Path, tmp_path: Path) -> None:
    write_set(tmp_path, things(), icons(), 300, SIDE, 0, degraded=0.4)
    clean, mixed = rows(shapes), rows(tmp_path)
    assert all(row["aesthetic_score"] == BEST_SCORE for row in clean)
    assert 0.3 < sum(row["aesthetic_score"] < BEST_SCORE for row in mixed) / len(mixed) < 0.5
    assert min(row["aesthetic_score"] for row in mixed) < 2
    for before, after in zip(clean, mixed, strict=True):
        same = (shapes / before["file_name"]).read_bytes() == (tmp_path / after["file_name"]).read_bytes()
        assert same == (after["aesthetic_score"] == BEST_SCORE)
        assert before["text"] == after["text"]


@pytest.mark.parametrize("seed", range(8))
def test_more_harm_is_farther_from_the_drawing(seed: int) -> None:
    picture = compose((64, 64), "blue", [(draw_icon("wedge", PALETTE["yellow"]).resize((50, 50)), 32, 32)])

    def error(amount: float) -> float:
        worse = degrade(picture, amount, random.Random(seed))
        assert worse.size == picture.size
        return float(np.square(np.asarray(worse, float) - np.asarray(picture, float)).mean())

    assert 0 < error(0.1) < error(0.9)


def test_single_things_lie_wholly_inside() -> None:
    rng = random.Random(5)
    for size in ((64, 64), (64, 96), (20, 20)):
        for _ in range(200):
            placed = place_one(rng, things()[0], size)
            assert 0 <= placed.x - placed.width / 2 < placed.x + placed.width / 2 <= size[1]
            assert 0 <= placed.y - placed.height / 2 < placed.y + placed.height / 2 <= size[0]


def test_what_is_not_the_thing_is_of_the_background_colour(shapes: Path) -> None:
    for row in rows(shapes):
        if row["kind"] == "single":
            with Image.open(shapes / row["file_name"]) as image:
                share = (np.asarray(image) == PALETTE[row["background"]]).all(axis=-1).mean()
            assert 0.1 < share < 0.9, row


def test_of_a_pair_the_first_named_is_on_the_left(shapes: Path) -> None:
    pairs = [row for row in rows(shapes) if row["kind"] == "pair"]
    assert pairs
    for row in pairs:
        first, second = row["thing"], row["thing_2"]
        assert first != second
        assert row["text"].index(first) < row["text"].index(" and ") < row["text"].index(second)
        with Image.open(shapes / row["file_name"]) as image:
            pixels = np.asarray(image).astype(int)
        for thing, half in ((first, pixels[:, : SIDE // 2]), (second, pixels[:, SIDE // 2 :])):
            colour = COLOURS[row["style"]][SHAPES.index(thing)]
            assert (np.abs(half - colour).max(axis=-1) < 8).any(), row


def test_captions_never_name_a_wrong_colour_or_style() -> None:
    rng = random.Random(3)
    for _ in range(600):
        style, background = rng.choice(list(STYLES)), rng.choice(list(PALETTE))
        words = set(write_caption(rng, "a cat", "cat", style, background).replace(",", "").split())
        assert words & set(STYLES) <= {style}
        assert words & {*PALETTE, "grey"} <= {background, "grey" if background == "gray" else background}
        assert background == "white" or words & {background, "grey"}
        assert "cat" in words


def test_a_caption_without_a_colour_stands_for_white_alone(shapes: Path) -> None:
    unnamed = [r for r in rows(shapes) if not set(r["text"].replace(",", "").split()) & {*PALETTE, "grey"}]
    assert unnamed
    assert {r["background"] for r in unnamed} == {"white"}


@pytest.mark.parametrize(
    ("thing", "name", "phrase"),
    [
        (Thing("cat", "cat", (), None, ""), None, "a cat"),
        (Thing("owl", "owl", (), None, ""), None, "an owl"),
        (Thing("unicorn", "unicorn", (), None, ""), None, "a unicorn"),
        (Thing("hourglass", "hourglass-done", (), None, ""), None, "an hourglass"),
        (Thing("moon", "moon", (), "the", ""), None, "the moon"),
        (Thing("fries", "fries", ("chips",), "", ""), "chips", "chips"),
        (Thing("grapes", "grapes", ("bunch of grapes",), "", ""), "bunch of grapes", "a bunch of grapes"),
        (Thing("gift", "gift", ("aeroplane",), None, ""), "aeroplane", "an aeroplane"),
    ],
)
def test_articles(thing: Thing, name: str | None, phrase: str) -> None:
    assert thing.phrase(name) == phrase


def test_the_article_of_a_colour_is_right_too() -> None:
    assert plain_caption("a cat", "noto", "orange") == "a cat on an orange background, noto style"
    assert plain_caption("an owl", "flat", "red") == "an owl on a red background, flat style"


def test_the_table_has_the_everyday_things_under_unambiguous_names() -> None:
    table = tomli.loads(TABLE.read_text(encoding="utf-8"))
    names = [word for name, entry in table.items() for word in (name, *entry.get("also", ()))]
    assert len(names) == len(set(names))
    core = list(table)[:CORE_THINGS]
    assert {"cat", "dog", "red apple", "rocket", "pizza", "house", "car", "tree", "flower", "star", "heart"} <= set(
        core
    )
    assert "apple" in table["red apple"]["also"]
    assert not [name for name in table if "flag" in name]


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAMES.tarball).write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"is not unicode-emoji-json 0\.9\.0: sha256"):
        load_names(tmp_path)


def test_every_icon_is_kept_for_the_judge(shapes: Path) -> None:
    for (name, style), icon in icons().items():
        with Image.open(shapes / "references" / style / f"{name}.png") as kept:
            assert np.array_equal(np.asarray(kept), np.asarray(icon))
