"""`sdxl img2img` from a picture to a picture, on a model of SDXL's shape."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support_cli import Sdxl
from support_files import published_shapes, sparse_file
from support_tiny import tiny_config, write_preset, write_tiny_checkpoint

from sdxl_core.picture_files import read_record
from sdxl_core.plan import Plan

RNG = np.random.default_rng(0)


@pytest.fixture
def img2img(sdxl: Sdxl, tiny_folder: Path) -> Sdxl:
    """`sdxl img2img` with the tiny base."""
    return lambda *argv: sdxl("img2img", "--preset", tiny_folder / "tiny-base.toml", "--device", "cpu", *argv)


def picture(name: str = "photo.png", width: int = 64, height: int = 64) -> Path:
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(name)
    return Path(name)


def mask(name: str = "mask.png", width: int = 64, height: int = 64, value: int = 255) -> Path:
    level = np.zeros((height, width), np.uint8)
    level[: height // 2, : width // 2] = value
    Image.fromarray(level).save(name)
    return Path(name)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def plan_in(path: Path) -> Plan:
    return Plan.from_json(json.dumps((read_record(path).record or {})["plan"]))


def test_a_picture_and_a_prompt_become_a_picture(img2img: Sdxl) -> None:
    picture(width=70, height=50)
    result = img2img("photo.png", "a cat", "--seed", 7, "--steps", 10, "--strength", 0.3)
    assert (result.code, result.out) == (0, "outputs/00001-7-a-cat.png\n")
    assert "strength 0.3 of 10 steps: 3 steps, sigma 0.8299 to 0" in result.err
    assert "3 model calls" in result.err
    assert pixels(result.paths[0]).shape == (48, 72, 3)
    plan = plan_in(result.paths[0])
    assert plan.source is not None
    assert (plan.source.picture.name, plan.source.picture.size, plan.source.strength) == ("photo.png", (50, 70), 0.3)
    assert (plan.original_size, plan.crop_coords_top_left, plan.target_size) == ((48, 72), (0, 0), (48, 72))
    assert (read_record(result.paths[0]).record or {})["sigmas"] == list(plan.sigmas())


def test_inspect_says_what_a_picture_starts_from(img2img: Sdxl, sdxl: Sdxl) -> None:
    sha256 = hashlib.sha256(picture().read_bytes()).hexdigest()
    mask()
    drawn = img2img("photo.png", "a cat", "--mask", "mask.png", "--strength", 0.4).paths[0]
    seen = " ".join(sdxl("inspect", drawn).out.split())
    assert f"starts from photo.png, 64x64, sha256 {sha256}" in seen
    assert "mask mask.png, 64x64, sha256 " in seen
    assert "strength 0.4" in seen


def test_strength_1_is_the_picture_from_words(img2img: Sdxl, gen: Sdxl) -> None:
    picture()
    start, words = img2img("photo.png", "a cat", "--seed", 7, "--strength", 1), gen("a cat", "--seed", 7, "-o", "words")
    np.testing.assert_array_equal(pixels(start.paths[0]), pixels(words.paths[0]))


def test_outside_the_mask_every_byte_is_the_pictures(img2img: Sdxl) -> None:
    picture(), mask()
    result = img2img("photo.png", "a cat", "--mask", "mask.png")
    assert result.code == 0
    assert "strength 1 of 3 steps: 3 steps" in result.err
    drawn, given = pixels(result.paths[0]), pixels(Path("photo.png"))
    outside = np.ones((64, 64), bool)
    outside[:32, :32] = False
    np.testing.assert_array_equal(drawn[outside], given[outside])
    assert (drawn[~outside] != given[~outside]).any()


def test_the_masked_part_alone_leaves_the_rest_of_a_large_picture(img2img: Sdxl) -> None:
    picture(width=203, height=151), mask(width=203, height=151)
    result = img2img("photo.png", "a cat", "--mask", "mask.png", "--only-masked", "--mask-padding", 8, "--json")
    facts = json.loads(result.out)
    assert (facts["width"], facts["height"]) == (203, 151)
    drawn, given = pixels(Path(facts["path"])), pixels(Path("photo.png"))
    outside = np.ones((151, 203), bool)
    outside[:75, :101] = False
    np.testing.assert_array_equal(drawn[outside], given[outside])
    assert plan_in(Path(facts["path"])).size != (151, 203)


def test_margins_are_painted_and_the_picture_stays(img2img: Sdxl) -> None:
    picture(width=40, height=32)
    result = img2img("photo.png", "a cat", "--pad", "8,16,16,0")
    drawn = pixels(result.paths[0])
    assert drawn.shape == (48, 64, 3)
    np.testing.assert_array_equal(drawn[16:, 8:48], pixels(Path("photo.png")))
    assert plan_in(result.paths[0]).source is not None


def test_patterns_names_and_several_prompts(img2img: Sdxl) -> None:
    for name in ("a1.png", "a2.png", "b.png"):
        picture(name)
    result = img2img("a*.png", "b.png", "--prompt", "x", "--prompt", "y", "--seed", 1, "-o", "out/{source}-{slug}.png")
    assert [path.name for path in result.paths] == [f"{s}-{p}.png" for s in ("a1", "a2", "b") for p in "xy"]
    assert len({pixels(path).tobytes() for path in result.paths}) == 6


def test_a_batch_changes_nothing(img2img: Sdxl) -> None:
    picture("a.png"), picture("b.png")
    argv = ("a.png", "b.png", "a cat", "--seed", 1, "--strength", 0.7, "--dtype", "fp32")
    single, batch = img2img(*argv, "-o", "single"), img2img(*argv, "-o", "batch", "-b", 2)
    for one, other in zip(single.paths, batch.paths, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1


def test_without_a_prompt_a_picture_brings_its_own(img2img: Sdxl, gen: Sdxl) -> None:
    drawn = gen("a red apple", "--seed", 3).paths[0]
    again = img2img(drawn, "--strength", 0.5)
    assert plan_in(again.paths[0]).prompt == "a red apple"
    picture()
    result = img2img("photo.png")
    assert (result.code, result.out) == (2, "")
    assert "no prompt was given, and photo.png has none in a record of its own" in result.err
    Path("text.png").write_text("no picture")
    result = img2img("text.png")
    assert (result.code, result.out) == (1, "")
    assert "text.png: not a picture that can be read" in result.err


def test_the_size_is_what_was_asked_for(img2img: Sdxl) -> None:
    picture(width=200, height=100)
    for argv, size in (
        (("--size", "32x40"), (32, 40)),
        (("--aspect", "input"), (96, 64)),
        (("--aspect", "1:1"), (64, 64)),
        ((), (200, 96)),
    ):
        facts = json.loads(img2img("photo.png", "x", "--dry-run", "--json", *argv).out)
        assert facts["plan"]["size"] == [size[1], size[0]], argv


def test_a_size_far_beyond_the_models_is_warned_of(img2img: Sdxl) -> None:
    picture(width=200, height=100)
    assert "200x96 is 4.7 times the area that tiny-base was trained on" in img2img("photo.png", "x", "--dry-run").err
    assert "times the area" not in img2img("photo.png", "x", "--dry-run", "--aspect", "input").err


def test_a_dry_run_tells_where_it_starts(img2img: Sdxl) -> None:
    picture(), mask()
    result = img2img("photo.png", "a cat", "--mask", "mask.png", "--mask-grow", 3, "--dry-run")
    assert result.code == 0
    assert "photo.png, 64x64, resize crop, encoding mode" in result.out
    assert "mask.png, grown 3, blurred 4" in result.out
    assert not Path("outputs").exists()


def test_a_drawn_encoding_is_another_start_and_stands_in_the_record(img2img: Sdxl) -> None:
    picture()
    argv = ("photo.png", "a cat", "--seed", 7, "--strength", 0.4, "-o")
    mode, sample = img2img(*argv, "mode.png"), img2img(*argv, "sample.png", "--encoding", "sample")
    assert (pixels(mode.paths[0]) != pixels(sample.paths[0])).any()
    plans = [plan_in(result.paths[0]) for result in (mode, sample)]
    assert [plan.source.how.encoding for plan in plans if plan.source is not None] == ["mode", "sample"]
    assert "encoding sample" in img2img(*argv, "x.png", "--encoding", "sample", "--dry-run").out
    assert 'encoding = "sample"' in img2img(*argv, "x.png", "--encoding", "sample", "--print-config").out


def test_the_recipe_can_say_all_of_it(img2img: Sdxl) -> None:
    picture()
    printed = img2img(
        "photo.png", "a cat", "--strength", 0.4, "--mask-grow", 5, "--background", "red", "--print-config"
    )
    assert "strength = 0.4" in printed.out
    assert 'background = "#ff0000"' in printed.out
    assert "grow = 5" in printed.out


@pytest.mark.parametrize("kind", ["inpaint", "edit"])
def test_networks_that_are_shown_a_picture(sdxl: Sdxl, tmp_path: Path, kind: Any) -> None:
    config = tiny_config(kind)
    path = write_tiny_checkpoint(tmp_path / config.file.name, kind)
    preset = write_preset(tmp_path / "shown.toml", config, "[recipe]\nsteps = 2\n")
    run = ("--preset", preset, "--model", path, "--device", "cpu", "--seed", 1)
    picture(), mask()
    part = ("--mask", "mask.png") if kind == "inpaint" else ()
    result = sdxl("img2img", "photo.png", "a cat", *run, *part)
    assert result.code == 0, result.err
    assert "strength 1 of 2 steps" in result.err
    assert plan_in(result.paths[0]).source.condition == kind  # type: ignore[union-attr]
    if kind == "edit":
        other = write_preset(tmp_path / "other.toml", config, "[recipe.guider.rescale]\nphi = 0.7\n")
        guided = sdxl("img2img", "photo.png", "a cat", *run, "--preset", other)
        assert (guided.code, guided.out) == (2, "")
        assert "an editing model is guided by words and a picture alone" in guided.err
    refused = sdxl("gen", "a cat", *run)
    assert (refused.code, refused.out) == (2, "")
    assert "draws from pictures, not from words alone" in refused.err


@pytest.mark.parametrize(("channels", "preset"), [(9, "sdxl-inpaint"), (8, "sdxl-edit")])
def test_a_file_of_the_published_shape_finds_its_preset(sdxl: Sdxl, channels: int, preset: str) -> None:
    shapes = published_shapes("base")
    shapes["model.diffusion_model.input_blocks.0.0.weight"][1] = channels
    sparse_file(Path("found.safetensors"), shapes)
    picture(), mask()
    result = sdxl("img2img", "photo.png", "a cat", "--mask", "mask.png", "--model", "found.safetensors", "--dry-run")
    assert result.code == 0, result.err
    assert f" {preset}: " in result.out


def test_an_inpainting_model_must_be_told_what_to_paint(sdxl: Sdxl) -> None:
    picture()
    result = sdxl("img2img", "photo.png", "a cat", "--preset", "sdxl-inpaint", "--dry-run")
    assert (result.code, result.out) == (2, "")
    assert "is an inpainting model, and nothing says what to paint" in result.err


def test_a_picture_that_cannot_be_used_does_not_stop_the_others(img2img: Sdxl) -> None:
    picture("a.png"), picture("b.png"), picture("dot.png", 1, 1), picture("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-2000])
    given = "a.png", "gone.png", "cut.png", "dot.png", "b.png", "a cat", "-o", "out/{source}.png"
    result = img2img(*given)
    assert (result.code, [path.name for path in result.paths]) == (3, ["a.png", "b.png"])
    assert result.err.count("error:") == 3
    for said in ("gone.png: no such file", "cut.png: damaged or cut off", "dot.png is 1x1"):
        assert said in result.err
    shown = img2img(*given, "--dry-run")
    assert (shown.code, shown.err.count("error:")) == (3, 3)


def test_where_no_picture_can_be_used_the_first_reason_is_the_exit_code(img2img: Sdxl) -> None:
    picture("plain.png")
    result = img2img("gone.png", "plain.png", "-o", "out")
    assert (result.code, result.out, result.err.count("error:")) == (1, "", 2)
    assert not Path("out").exists()


def test_what_is_wrong_with_the_mask_is_said_once(img2img: Sdxl) -> None:
    picture("a.png"), picture("b.png"), mask("black.png", value=0)
    result = img2img("a.png", "b.png", "a cat", "--mask", "black.png")
    assert (result.code, result.out, result.err.count("error:")) == (2, "", 1)


BAD = {
    "nothing at all": ((), 2, "no picture was given"),
    "a prompt alone": (("a cat",), 2, "no picture was given"),
    "missing": (("gone.png", "a cat"), 1, "gone.png: no such file"),
    "no match": (("x*.png", "a cat"), 2, "no file matches 'x*.png'"),
    "a folder": ((".", "a cat"), 1, ".: a folder, not a picture"),
    "text": (("notes.txt", "a cat"), 1, "notes.txt: not a picture that can be read"),
    "cut off": (("cut.png", "a cat"), 1, "cut.png: damaged or cut off"),
    "strength 0": (("photo.png", "a cat", "--strength", 0), 2, "--strength: "),
    "strength 1.5": (("photo.png", "a cat", "--strength", 1.5), 2, "--strength: "),
    "strength nan": (("photo.png", "a cat", "--strength", "nan"), 2, "--strength: "),
    "too long a schedule": (
        ("photo.png", "a cat", "--strength", 0.001, "--steps-exact"),
        2,
        "are the end of a schedule of 3000 steps",
    ),
    "mask of another shape": (("photo.png", "a cat", "--mask", "wide.png"), 2, "they have not the same shape"),
    "black mask": (("photo.png", "a cat", "--mask", "black.png"), 2, "the mask black.png is black everywhere"),
    "only masked without a mask": (("photo.png", "a cat", "--only-masked"), 2, "--only-masked needs a mask"),
    "pad of nothing": (("photo.png", "a cat", "--pad", "0,0,0,0"), 2, "--pad '0,0,0,0' adds nothing"),
    "pad of one": (("photo.png", "a cat", "--pad", "8"), 2, "--pad '8' is not four numbers of at most four digits"),
    "pad beyond what can be drawn": (
        ("photo.png", "a cat", "--pad", "9999,0,9999,0"),
        2,
        "photo.png is 20062x64 with its margins, which is larger than 16384",
    ),
    "one pixel": (("dot.png", "a cat"), 2, "dot.png is 1x1, less than one latent cell"),
    "no colour": (("photo.png", "a cat", "--background", "whit"), 2, "'whit' is no colour"),
    "grown by less": (("photo.png", "a cat", "--mask", "mask.png", "--mask-grow", -1), 2, "--mask-grow: "),
    "bad aspect": (("photo.png", "a cat", "--aspect", "inputs"), 2, "--aspect 'inputs' is no shape"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_error_and_harms_no_file(img2img: Sdxl, case: str) -> None:
    picture(), mask(), mask("wide.png", 128, 64), mask("black.png", value=0)
    picture("dot.png", 1, 1)
    Path("notes.txt").write_text("a cat")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:-2000])
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    argv, code, says = BAD[case]
    result = img2img(*argv)
    assert (result.code, result.out) == (code, "")
    assert says in result.err
    assert result.err.count("error:") == 1
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
