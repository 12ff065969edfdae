"""`sdxl refine` on pictures and saved latents, with a refiner of SDXL's shape."""

import hashlib
import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from support_cli import Sdxl
from support_files import published_shapes, sparse_file

import sdxl_core
from sdxl_core.picture_files import read_record
from sdxl_core.presets import shipped_file


@pytest.fixture
def refine(sdxl: Sdxl, tiny_folder: Path) -> Sdxl:
    """`sdxl refine` with the tiny refiner."""
    preset = ("--preset", tiny_folder / "tiny-refiner.toml", "--device", "cpu", "--dtype", "fp32", "--steps", 6)
    return lambda *argv: sdxl("refine", *argv, *preset, "--strength", 0.34)


@pytest.fixture
def drawn(gen: Sdxl) -> Path:
    """A picture of the tiny base, its latent beside it."""
    return gen("a cat", "--seed", 7, "--save-latents", "--dtype", "fp32", "-o", "drawn").paths[0]


def test_pictures_and_latents_are_refined_in_one_call_with_their_own_words(refine: Sdxl, drawn: Path) -> None:
    latent = drawn.with_suffix(".latent.safetensors")
    before = drawn.read_bytes(), latent.read_bytes()
    result = refine(drawn, latent, "--seed", 3, "-o", "refined", "--json")
    assert result.code == 0
    assert result.err.count("loading tiny_refiner") == 1
    facts = [json.loads(line) for line in result.out.splitlines()]
    assert [(f["prompt"], f["preset"]) for f in facts] == [("a cat", "tiny-refiner")] * 2
    records = [read_record(f["path"]).record or {} for f in facts]
    assert [record["plan"]["source"]["latent"] for record in records] == [False, True]
    assert [len(record["sigmas"]) for record in records] == [3, 3]
    assert (drawn.read_bytes(), latent.read_bytes()) == before


def test_hardly_any_noise_leaves_a_latent_as_it_was(sdxl: Sdxl, drawn: Path, tiny_folder: Path) -> None:
    saved, preset = drawn.with_suffix(".latent.safetensors"), tiny_folder / "tiny-refiner.toml"
    machine = ("--device", "cpu", "--dtype", "fp32")
    result = sdxl("refine", saved, "--preset", preset, *machine, "--sigmas", "0.001,0", "--save-latents", "-o", "same")
    before, after = (load_file(path)["latent"] for path in (saved, result.paths[0].with_suffix(saved_suffix(saved))))
    assert 0 < np.abs(after - before).max() < 0.1
    assert before.std() > 1


def saved_suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:])


def test_a_file_that_cannot_be_refined_does_not_stop_the_others(refine: Sdxl, sdxl: Sdxl, drawn: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("plain.png")
    write_latent(Path("video.safetensors"), (16, 8, 8))
    argv = "gone.png", drawn, "plain.png", "-o", "out"
    result = refine(*argv)
    assert (result.code, len(result.paths), result.err.count("error:")) == (3, 1, 2)
    assert "gone.png: no such file" in result.err
    assert "no prompt was given, and plain.png has none" in " ".join(result.err.split())
    latents = refine("video.safetensors", drawn.with_suffix(".latent.safetensors"), "--prompt", "a cat", "-o", "out")
    assert (latents.code, len(latents.paths)) == (3, 1)
    unnamed = sdxl("refine", *argv, "--dry-run")  # whose refiner the others' records tell
    assert (unnamed.code, unnamed.err.count("error: gone.png")) == (3, 1)


def test_where_all_files_fail_the_code_is_that_of_the_first(refine: Sdxl, sdxl: Sdxl) -> None:
    Image.new("RGB", (64, 64), "red").save("plain.png")
    Path("text.safetensors").write_text("no latent")
    codes = {"gone.png": 1, "plain.png": 2, "text.safetensors": 4}
    for files in permutations(codes):
        result = refine(*files)
        assert (result.code, result.out, result.err.count("error:")) == (codes[files[0]], "", 3)
    for files in ("text.safetensors", "gone.png"), ("gone.png", "text.safetensors"):
        assert sdxl("inspect", *files).code == codes[files[0]]
        assert sdxl("img2img", *files, "--prompt", "x", "--preset", "micro").code == codes[files[0]]
    write_latent(Path("nan.safetensors"), (4, 8, 8), float("nan"))
    assert [sdxl("decode", *files).code for files in (("nan.safetensors", "gone"), ("gone", "nan.safetensors"))] == [
        1,
        4,
    ]


def test_words_of_ones_own_replace_the_record(refine: Sdxl, drawn: Path) -> None:
    result = refine(drawn, "--prompt", "a dog", "--seed", 3, "-o", "dog.png")
    assert ((read_record(result.paths[0]).record or {})["plan"])["prompt"] == "a dog"


def write_latent(path: Path, shape: tuple[int, ...], value: float = 0.5) -> Path:
    save_file({"latent": np.full(shape, value, np.float32)}, path)
    return path


def test_what_cannot_be_refined_is_one_error_and_harms_nothing(refine: Sdxl, tiny_folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("plain.png")
    write_latent(Path("bare.safetensors"), (4, 8, 8))
    write_latent(Path("video.safetensors"), (16, 8, 8))
    write_latent(Path("nan.safetensors"), (4, 8, 8), float("nan"))
    Path("text.png").write_text("no picture")
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    cases = [
        (("plain.png",), 2, "no prompt was given, and plain.png has none"),
        (("bare.safetensors",), 2, "no prompt was given, and bare.safetensors has none"),
        (("video.safetensors", "--prompt", "a cat"), 4, "has 16 channels"),
        (("nan.safetensors", "--prompt", "a cat"), 1, "is not finite"),
        (("bare.safetensors", "--prompt", "a cat", "--size", "64x64"), 2, "--size has no meaning for a latent"),
        ((tiny_folder / "tiny_base.safetensors", "--prompt", "a cat"), 4, "no latent: this is an SDXL base"),
        (("text.png", "--prompt", "a cat"), 1, "text.png"),
        (("none.png", "--prompt", "a cat"), 1, "none.png"),
        ((), 2, "no picture and no latent was given"),
    ]
    for argv, code, message in cases:
        result = refine(*argv, "-o", "out")
        assert (result.code, result.out) == (code, ""), argv
        assert message in " ".join(result.err.split())
        assert "Traceback" not in result.err
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    assert not Path("out").exists()


def test_without_a_preset_it_is_the_refiner_of_what_drew_the_picture(sdxl: Sdxl, drawn: Path) -> None:
    quick = ("--steps", 8, "--device", "cpu")
    first = sdxl("gen", "a cat", "--preset", "micro", "--seed", 1, *quick, "-o", "first.png")
    second = sdxl("refine", "first.png", "--seed", 2, *quick, "-o", "second.png")
    third = sdxl("refine", "second.png", "first.png", "--seed", 3, *quick, "--dry-run", "--json")
    plans = [(read_record(result.paths[0]).record or {})["plan"] for result in (first, second)]
    assert [plan["model"] for plan in plans] == ["micro", "micro-refiner"]
    assert plans[1]["prompt"] == "a cat"
    assert [json.loads(line)["plan"]["model"] for line in third.out.splitlines()] == ["micro-refiner"] * 2
    # The tiny model has no preset by its name, so its pictures are taken for SDXL's.
    other = sdxl("refine", drawn, *quick)
    assert other.code == 4
    assert "sdxl pull sdxl-refiner-1.0" in other.err


def test_any_other_model_goes_over_the_last_steps_too(sdxl: Sdxl, tiny_folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    base = ("red.png", "--prompt", "x", "--preset", tiny_folder / "tiny-base.toml", "--steps", 20)
    assert "strength 0.15 of 20 steps: 3 steps" in sdxl("refine", *base, "--dry-run").err
    assert "strength 0.5 of 20 steps" in sdxl("refine", *base, "--dry-run", "--strength", 0.5).err
    printed = sdxl("refine", *base, "--print-config").out
    assert "strength = 0.15" in printed
    Path("mine.toml").write_text(f'base = "{tiny_folder / "tiny-base.toml"}"\n[recipe.source]\nstrength = 0.4\n')
    assert "strength 0.4 of " in sdxl("refine", "red.png", "--prompt", "x", "--preset", "mine.toml", "--dry-run").err


def test_a_refiners_file_is_known_by_its_header(sdxl: Sdxl, tmp_path: Path) -> None:
    sparse_file(Path("mine.safetensors"), published_shapes("refiner"))
    Image.new("RGB", (64, 64), "red").save("red.png")
    argv = ("refine", "red.png", "--prompt", "x", "--dry-run", "--json", "--model")
    told = [sdxl(*argv, file) for file in ("mine.safetensors", "micro-refiner.safetensors", "micro.safetensors")]
    assert [json.loads(result.out)["plan"]["model"] for result in told] == [
        "sdxl-refiner-1.0",
        "micro-refiner",
        "micro",
    ]
    presets = tmp_path / "XDG_CONFIG_HOME" / "sdxl" / "presets"
    presets.mkdir(parents=True)
    twin = shipped_file("models/micro-refiner.toml").read_text().replace('name = "micro-refiner"', 'name = "twin"')
    (presets / "twin.toml").write_text(twin)
    unsure = sdxl(*argv, "micro-refiner.safetensors")
    assert (unsure.code, unsure.out) == (2, "")
    assert "is the refiner of several presets: micro-refiner, twin" in unsure.err


def test_the_record_names_the_file_that_parts_are_borrowed_from(sdxl: Sdxl) -> None:
    quick = ("--seed", 1, "--device", "cpu", "--steps", 4)
    drawn = sdxl("gen", "a cat", "--preset", "micro", "--refine", "share@step=3", *quick, "-o", "both.png")
    alone = sdxl("refine", "both.png", "--save-latents", *quick, "-o", "alone.png")
    weights = Path(sdxl_core.__file__).parent / "weights"
    own, parts = (
        hashlib.sha256((weights / f"{name}.safetensors").read_bytes()).hexdigest()
        for name in ("micro-refiner", "micro")
    )
    records = [read_record(result.paths[0]).record or {} for result in (drawn, alone)]
    found = [{file["role"]: file["sha256"] for file in record["weights"]} for record in records]
    assert found == [
        {"model": parts, "refiner": own, "refiner_parts": parts},
        {"model": own, "model_parts": parts},
    ]
    assert f"model parts file  micro.safetensors sha256 {parts}" in sdxl("inspect", "alone.png").out
    again = sdxl("decode", "alone.latent.safetensors", "-o", "again.png")
    assert "warning" not in again.err
    assert Path("again.png").read_bytes() == Path("alone.png").read_bytes()


def test_a_missing_prompt_is_said_before_a_refiner_that_is_missing(sdxl: Sdxl) -> None:
    Image.new("RGB", (64, 64), "red").save("plain.png")
    result = sdxl("refine", "plain.png")
    assert (result.code, result.out) == (2, "")
    assert "no prompt was given, and plain.png has none" in result.err


def test_a_file_that_is_not_there_is_said_before_a_refiner_that_is_missing(sdxl: Sdxl) -> None:
    result = sdxl("refine", "nothere.png")
    assert result.code != 0
    assert "nothere.png" in result.err
    assert "sdxl pull" not in result.err


@pytest.mark.parametrize("flags", [[], ["--prompt", "x"]])
def test_a_file_that_cannot_be_used_is_said_before_a_refiner_that_is_missing(
    sdxl: Sdxl, drawn: Path, flags: list[str]
) -> None:
    Image.new("RGB", (64, 64), "red").save("whole.bmp")
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(drawn.read_bytes()[:-100])
    Path("cut.bmp").write_bytes(Path("whole.bmp").read_bytes()[:-100])
    for file in "text.png", "cut.png", "cut.bmp", "":
        result = sdxl("refine", file, *flags)
        assert (result.code, result.out, result.err.count("error: ")) == (1 if file else 2, "", 1)
        assert (f"error: {file}: " if file else "error: the name of a file is empty\n") in result.err
        assert "sdxl pull" not in result.err
    assert "sdxl pull sdxl-refiner-1.0" in sdxl("refine", "whole.bmp", "--prompt", "x").err
