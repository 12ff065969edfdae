"""`sdxl decode` finishes what `sdxl gen` has sampled, and no sampled latent is lost."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from support_cli import Result, Sdxl
from support_files import room_for

from sdxl_core.picture_files import read_record

SUFFIX = ".latent.safetensors"


@pytest.fixture
def preset(tiny_folder: Path) -> list[object]:
    return ["--preset", tiny_folder / "tiny-base.toml"]


@pytest.fixture
def picture(gen: Sdxl) -> Path:
    """A picture whose latent lies beside it; in float32, where all exact ways agree to the last level."""
    return gen("a cat", "--seed", 7, "--save-latents", "-o", "cat.png", "-q", "--dtype", "fp32").paths[0]


@pytest.fixture
def latent(picture: Path) -> Path:
    return picture.with_suffix(SUFFIX)


@pytest.fixture
def damaged(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a first stage that gives no finite picture."""
    tensors = load_tensors(tiny_folder / "tiny_base.safetensors")
    tensors["first_stage_model.decoder.conv_out.bias"].fill_(torch.inf)
    save_tensors(tensors, tmp_path / "damaged.safetensors")
    return tmp_path / "damaged.safetensors"


def refused(result: Result, code: int, *words: str) -> None:
    assert (result.code, result.out) == (code, ""), result.err
    assert result.err.count("error: ") == 1
    for word in words:
        assert word in result.err


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_the_picture_is_the_one_that_gen_has_written(gen: Sdxl, sdxl: Sdxl, preset: list[object], format: str) -> None:
    path = gen("a cat", "--seed", 7, "--save-latents", "-o", "cat", "--format", format).paths[0]
    again = sdxl("decode", path.with_suffix(SUFFIX), *preset, "-o", f"again.{format}")
    assert (again.code, again.out) == (0, f"again.{format}\n")
    assert Path(f"again.{format}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("passes", ["none", "kept_text,phase_upsampling"])
def test_the_passes_are_those_that_the_latent_was_drawn_with(
    gen: Sdxl, sdxl: Sdxl, preset: list[object], passes: str
) -> None:
    run = ("--seed", 7, "--dtype", "fp32", "--save-latents", "-o", "cat.png")
    path = gen("a cat", *run, "--passes", passes).paths[0]
    assert sdxl("decode", path.with_suffix(SUFFIX), *preset, "-o", "again.png").code == 0
    assert Path("again.png").read_bytes() == path.read_bytes()


def test_without_output_it_lies_beside_its_latent(sdxl: Sdxl, picture: Path, preset: list[object]) -> None:
    before = picture.read_bytes()
    refused(sdxl("decode", picture.with_suffix(SUFFIX), *preset), 1, "cat.png exists already", "--overwrite")
    assert picture.read_bytes() == before
    picture.unlink()
    assert sdxl("decode", picture.with_suffix(SUFFIX), *preset).out == "cat.png\n"
    assert picture.read_bytes() == before


def test_many_latents_load_the_model_once(gen: Sdxl, sdxl: Sdxl, preset: list[object]) -> None:
    paths = gen("a cat", "--seed", 7, "-n", 3, "--save-latents").paths
    latents = [path.with_suffix(SUFFIX) for path in paths]
    pattern = latents[0].with_name("*.latent.safetensors")  # in quotes, as shells leave it
    result = sdxl("decode", pattern, *preset, "-o", "again/{seed}.png", "--json")
    facts = [json.loads(line) for line in result.out.splitlines()]
    assert [(fact["seed"], fact["path"]) for fact in facts] == [(s, f"again/{s}.png") for s in (7, 8, 9)]
    for fact, path in zip(facts, paths, strict=True):
        assert fact["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.err.count("loading tiny_base.safetensors") == 1
    stage = sum(
        t.nbytes
        for key, t in load_file(os.environ["SDXL_MODELS"] + "/tiny_base.safetensors").items()
        if key.startswith("first_stage_model.")
    )
    assert f"{stage / 1e3:.2f} kB" in result.err or f"{stage / 1e6:.2f} MB" in result.err


@pytest.mark.parametrize(("way", "largest"), [("pieces", 1), ("tiles", 1), ("whole", 0)])
def test_ways_to_decode(sdxl: Sdxl, picture: Path, preset: list[object], way: str, largest: int) -> None:
    sdxl("decode", picture.with_suffix(SUFFIX), *preset, "--decoding", way, "-o", "again.png")
    with Image.open(picture) as one, Image.open("again.png") as other:
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= largest
    assert (read_record("again.png").record or {})["plan"]["decoding"] == way


def test_another_autoencoder_stands_in_the_record(
    sdxl: Sdxl, latent: Path, preset: list[object], tiny_folder: Path
) -> None:
    tensors = load_tensors(tiny_folder / "tiny_base.safetensors")
    stage = {k: t for k, t in tensors.items() if k.startswith("first_stage_model.")}
    stage["first_stage_model.decoder.conv_out.bias"] += 0.5
    save_tensors(stage, "other.safetensors")
    assert sdxl("decode", latent, *preset, "--vae", "other.safetensors", "-o", "again.png").code == 0
    record = read_record("again.png").record or {}
    assert record["plan"]["vae"] == "other.safetensors"
    assert record["weights"][1]["sha256"] == hashlib.sha256(Path("other.safetensors").read_bytes()).hexdigest()
    assert Path("again.png").read_bytes() != Path("cat.png").read_bytes()


@pytest.mark.parametrize(
    "flags", ["--mask mask.png", "--mask mask.png --only-masked --mask-padding 8", "--pad 8,16,0,0"]
)
def test_what_a_mask_has_kept_is_in_the_latent(tiny_folder: Path, sdxl: Sdxl, flags: str) -> None:
    rng, level = np.random.default_rng(0), np.zeros((90, 70), np.uint8)
    level[20:50, 10:40] = 255
    Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8)).save("photo.png")
    Image.fromarray(level).save("mask.png")
    preset = ("--preset", tiny_folder / "tiny-base.toml", "--device", "cpu", "--dtype", "fp32")
    run = sdxl("img2img", "photo.png", "a cat", *flags.split(), *preset, "--save-latents", "-o", "cat.png")
    assert run.code == 0, run.err
    Path("photo.png").unlink()
    again = sdxl("decode", "cat.latent.safetensors", *preset[:2], "-o", "again.png")
    assert again.code == 0
    assert "warning" not in again.err
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()
    # One that was written before the latents held it.
    saved = Path("cat.latent.safetensors").read_bytes()
    head = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])["__metadata__"]
    save_file({"latent": load_file("cat.latent.safetensors")["latent"]}, "old.safetensors", head)
    assert "the latent does not hold what a mask has kept" in sdxl("decode", "old.safetensors", *preset[:2]).err


def test_without_a_record_the_model_must_be_named(gen: Sdxl, sdxl: Sdxl, preset: list[object]) -> None:
    path = gen("a cat", "--seed", 7, "--save-latents", "--no-metadata", "-o", "cat.png").paths[0]
    latent = path.with_suffix(SUFFIX)
    refused(sdxl("decode", latent, "-o", "again.png"), 2, "no record", "--preset or --model")
    sdxl("decode", latent, *preset, "--dtype", "auto", "-o", "again.png")
    assert Path("again.png").read_bytes() == path.read_bytes()


def test_float16_is_for_gpus_and_that_is_said(sdxl: Sdxl, picture: Path, latent: Path, preset: list[object]) -> None:
    cpu = (*preset, "--device", "cpu", "-o", "again.png")
    refused(sdxl("decode", latent, *cpu, "--dtype", "fp16"), 2, "float16 cannot be used on the CPU", "--dtype bfloat16")
    saved = latent.read_bytes()
    metadata = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])["__metadata__"]
    told = {key: text.replace('"dtype":"float32"', '"dtype":"float16"') for key, text in metadata.items()}
    assert told != metadata
    save_file(load_file(latent), latent, told)
    result = sdxl("decode", latent, *cpu)
    assert (result.code, result.out) == (0, "again.png\n")
    assert "the latent says float16, which is for GPUs: decoding in float32\n" in result.err
    with Image.open(picture) as one, Image.open("again.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_a_failing_decode_keeps_the_latent_and_says_where(
    gen: Sdxl, sdxl: Sdxl, damaged: Path, preset: list[object]
) -> None:
    good = gen("a cat", "--seed", 7, "-o", "good.png").paths[0]
    result = gen("a cat", "--seed", 7, "--vae", damaged, "-o", "cat.png")
    refused(result, 1, "decoded picture is not finite", "its latent is kept in cat.latent.safetensors", "sdxl decode")
    assert not Path("cat.png").exists()
    model = Path(os.environ["SDXL_MODELS"]) / "tiny_base.safetensors"
    assert sdxl("decode", "cat.latent.safetensors", *preset, "--vae", model).out == "cat.png\n"
    with Image.open(good) as one, Image.open("cat.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_a_picture_that_finds_no_room_leaves_its_latent_and_says_where(
    gen: Sdxl, sdxl: Sdxl, preset: list[object]
) -> None:
    good = gen("a cat", "--seed", 7, "-o", "good.png").paths[0].read_bytes()
    with room_for(8192):
        result = gen("a cat", "a dog", "--seed", 7, "--save-latents")
    refused(result, 1, "cannot write outputs/00001-7-a-cat.png: File too large; its latent is kept in ")
    kept = "outputs/00001-7-a-cat.latent.safetensors"
    assert f"hint: 'sdxl decode {kept}' makes the picture of it\n" in result.err
    assert sdxl("decode", kept, *preset).code == 0
    assert Path("outputs/00001-7-a-cat.png").read_bytes() == good


def test_no_latent_is_lost_where_one_picture_cannot_be_made_and_the_one_before_it_cannot_be_written(
    sdxl: Sdxl, tiny_folder: Path, tmp_path: Path, preset: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensors = load_tensors(tiny_folder / "tiny_base.safetensors")
    tensors["first_stage_model.post_quant_conv.weight"] *= 1e14  # its squares are beyond float32, for one latent
    save_tensors(tensors, tmp_path / "narrow.safetensors")
    for name, value in ("small", 0.1), ("large", 1e8):
        save_file({"latent": np.full((4, 8, 8), value, np.float32)}, f"{name}.safetensors")
    Path("out").mkdir()
    Path("out", "small").touch()  # where a folder is wanted
    result = sdxl(
        *("img2img", "small.safetensors", "large.safetensors", "a cat", "--strength", 0.4, "-b", 2, "--dtype", "fp32"),
        *(*preset, "--vae", tmp_path / "narrow.safetensors", "-o", "out/{source}/cat.png", "--seed", 7),
    )
    (unwritten,) = tmp_path.glob("sdxl-*/cat.latent.safetensors")
    unmade = Path("out/large/cat.latent.safetensors")
    assert (result.code, result.out) == (1, "")
    errors = [line.partition("error: ")[2] for line in result.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("picture 2 of 2 (seed 7, 'a cat'): the decoded picture is not finite")
    assert errors[0].endswith(f"; its latent is kept in {unmade}")
    assert errors[1].startswith("cannot write out/small/cat.png: ")
    assert errors[1].endswith(f"; its latent is kept in {unwritten}")
    assert len(errors) == 2
    for latent in unwritten, unmade:
        model = Path(os.environ["SDXL_MODELS"]) / "tiny_base.safetensors"
        assert sdxl("decode", latent, *preset, "--vae", model, "-o", "again/{index}.png").code == 0


def test_one_bad_latent_does_not_stop_the_others(sdxl: Sdxl, latent: Path, preset: list[object]) -> None:
    result = sdxl("decode", "none.safetensors", latent, *preset, "-o", "again/{seed}.png")
    assert (result.code, result.out) == (3, "again/7.png\n")
    assert "none.safetensors: no such file" in result.err


def test_where_nothing_can_be_written_no_model_is_loaded_for_it(
    sdxl: Sdxl, picture: Path, latent: Path, preset: list[object]
) -> None:
    Path("file").touch()
    with latent.open() as file:
        unwritable = f"/proc/self/fd/{file.fileno()}"  # not even for root
        for argv, words in (
            ([latent], "cat.png exists already"),
            ([latent, "-o", picture], "cat.png exists already"),
            ([latent, latent, "-o", "file/below/"], "cannot write to file/below: "),
            ([unwritable], "cannot write to /proc/self/fd: "),
        ):
            result = sdxl("decode", *argv, *preset)
            refused(result, 1, words)
            assert "loading" not in result.err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("none*.safetensors", 2, "no file matches 'none*.safetensors'"),
        ("--dtype fp16", 2, "float16 cannot be used on the CPU"),
        ("--device cuda:99", 2, "device 'cuda:99' "),
        ("--preset tiny-bass", 2, "no preset is named 'tiny-bass'"),
        ("--preset sdxl-base-1.0", 4, "sdxl pull sdxl-base-1.0"),
        ("--model gone", 4, "gone: no such model file"),
        ("--vae gone", 4, "gone: no such model file"),
        ("--vae cut.safetensors", 4, "cut.safetensors"),
        ("--vae cat.latent.safetensors", 4, "no VAE in the original layout"),
    ],
)
def test_what_no_latent_can_have_is_said_once(sdxl: Sdxl, latent: Path, flags: str, code: int, words: str) -> None:
    Path("cut.safetensors").write_bytes(b"cut")
    result = sdxl("decode", latent, "none.safetensors", latent, "--device", "cpu", *flags.split(), "-o", "again")
    refused(result, code, words)
    assert "none.safetensors" not in result.err


def test_files_that_are_no_latent(sdxl: Sdxl, picture: Path, latent: Path, preset: list[object]) -> None:
    good = load_file(latent)["latent"]
    record = latent.read_bytes()
    Path("cut.safetensors").write_bytes(record[:-100])
    for name, tensor in {
        "flat": good[0],
        "wide": np.concatenate([good] * 4),
        "small": good[:, :4],
        "nan": good * np.nan,
        "whole": good.astype(np.int32),
    }.items():
        head = {"sdxl": json.loads(record[8 : 8 + int.from_bytes(record[:8], "little")])["__metadata__"]["sdxl"]}
        save_file({"latent": np.ascontiguousarray(tensor)}, f"{name}.safetensors", head)
    save_file({"latent": good}, "foreign.safetensors", {"sdxl": '{"format": 2}'})
    model = Path(os.environ["SDXL_MODELS"]) / "tiny_base.safetensors"
    for file, code, words in (
        (picture, 4, ["a picture"]),
        (model, 4, ["no latent: this is"]),
        ("cut.safetensors", 4, ["cut off"]),
        ("flat.safetensors", 4, ["no latent: its tensor is F32 [8, 8]"]),
        ("whole.safetensors", 4, ["I32"]),
        ("wide.safetensors", 4, ["has 16 channels", "takes 4"]),
        ("small.safetensors", 4, ["picture of 64x32", "record says 64x64"]),
        ("nan.safetensors", 1, ["not finite"]),
        ("foreign.safetensors", 4, ["its record cannot be read"]),
        ("none.safetensors", 4, ["no such file"]),
    ):
        refused(sdxl("decode", file, *preset, "-o", "again.png"), code, *words)
    assert not Path("again.png").exists()


def test_latents_of_another_model_are_refused(sdxl: Sdxl, latent: Path) -> None:
    refused(sdxl("decode", latent, "-o", "again.png"), 2, "its model is not known here", "tiny-base", "--preset")
    refused(sdxl("decode", latent, "--preset", "micro", "-o", "again.png"), 4, "micro", "--preset")
