"""What the program says of a plan that can be drawn, but is hardly meant so."""

import pytest
from PIL import Image
from support_cli import Sdxl

KNOWN = "was trained on the lowest 200 of 1000 noise levels, up to sigma 0.5693"


@pytest.fixture
def told(sdxl: Sdxl) -> Sdxl:
    """A dry run of micro and its refiner."""
    Image.new("RGB", (128, 128), "red").save("red.png")
    return lambda *argv: sdxl(*argv, "--seed", 1, "--device", "cpu", "--dry-run")


@pytest.mark.parametrize(
    ("argv", "begins", "remedy"),
    [
        ("gen x --refine share@0.5", "1.479", "try --refine share@0.8"),
        ("gen x --refine share@step=3", "5.476", "try --refine share@0.8"),
        ("gen x --refine sdedit@0.6", "1.067", "try --refine sdedit@0.5"),
        (
            "gen x --refine sdedit@0.15 --steps 4 --schedule legacy_ddpm",
            "0.6932",
            "take more steps",
        ),
        ("gen x --preset micro-refiner", "14.61", "draw with the model that it refines, and add --refiner"),
        (
            "refine red.png --prompt x --preset micro-refiner --strength 0.3",
            "0.8299",
            "try --strength 0.2",
        ),
        ("img2img red.png x --preset micro-refiner --strength 1", "14.61", "try --strength 0.2"),
    ],
)
def test_a_refiner_above_what_it_was_trained_on(told: Sdxl, argv: str, begins: str, remedy: str) -> None:
    result = told(*argv.split())
    assert result.code == 0
    said = f"warning: micro-refiner {KNOWN}, and begins at {begins} here, where it has never been: {remedy}\n"
    assert said in result.err


@pytest.mark.parametrize(
    "argv",
    [
        "gen x --refiner",
        "gen x --refine sdedit@0.5",
        "refine red.png --prompt x --preset micro-refiner",
        "refine red.png --prompt x --preset micro-refiner --strength 0.2",
        "img2img red.png x --preset micro --strength 1",
    ],
)
def test_within_it_nothing_is_said(told: Sdxl, argv: str) -> None:
    result = told(*argv.split())
    assert result.code == 0
    assert "warning" not in result.err


def test_the_published_refiner_has_the_same_limit(told: Sdxl) -> None:
    result = told("gen", "x", "--preset", "sdxl-base-1.0", "--refine", "share@0.7")
    assert f"sdxl-refiner-1.0 {KNOWN}" in result.err


@pytest.mark.parametrize(
    ("side", "more", "warned"),
    [(60, "", True), (64, "", False), (60, "--only-masked", False), (64, "--size 128x128", True)],
)
def test_a_masked_picture_that_has_to_be_resized_whole(sdxl: Sdxl, side: int, more: str, warned: bool) -> None:
    Image.new("RGB", (side, 64), "red").save("red.png")
    mask = Image.new("L", (side, 64))
    mask.paste(255, (0, 0, 30, 30))
    mask.save("mask.png")
    flags = ["--seed", 1, "--device", "cpu", "--dry-run"]
    result = sdxl("img2img", "red.png", "x", "--mask", "mask.png", *more.split(), *flags)
    assert result.code == 0
    assert ("so that what is not repainted changes too: try --only-masked" in result.err) == warned
