"""`sdxl inspect` on models, pictures, latents and what is none of them."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from support_cli import Sdxl
from support_tiny import tiny_tensors


def test_a_model_is_described_with_the_reason(sdxl: Sdxl, tiny_folder: Path) -> None:
    result = sdxl("inspect", tiny_folder / "tiny_base.safetensors")
    assert result.code == 0
    for word in ("an SDXL base", "two text encoders", "network", "first stage", "text encoder 2", "total", "F32"):
        assert word in result.out
    assert "an SDXL refiner" in sdxl("inspect", "tiny_refiner").out


def test_the_document_counts_what_is_in_the_file(sdxl: Sdxl, tiny_folder: Path) -> None:
    document = json.loads(sdxl("inspect", "tiny_base.safetensors", "--json", "--hash", "--tensors").out)
    tensors = tiny_tensors()
    assert document["kind"] == "base"
    assert document["bytes"] == (tiny_folder / "tiny_base.safetensors").stat().st_size
    assert len(document["sha256"]) == 64
    assert set(document["tensors"]) == set(tensors)
    assert sum(part["tensors"] for part in document["parts"].values()) == len(tensors)
    assert sum(part["parameters"] for part in document["parts"].values()) == sum(t.numel() for t in tensors.values())


def test_a_file_of_seven_gigabytes_takes_no_time(sdxl: Sdxl) -> None:
    keys = {f"model.diffusion_model.input_blocks.{i}.weight": 3_000_000 for i in range(2300)}
    table, end = {}, 0
    for key, size in keys.items():
        table[key] = {"dtype": "F16", "shape": [size // 2], "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(table).encode()
    with open("large.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    began = time.process_time()
    result = sdxl("inspect", "large.safetensors")
    assert time.process_time() - began < 1
    assert "6.90 GB" in result.out


def test_a_picture_tells_its_record(sdxl: Sdxl, tiny_folder: Path) -> None:
    made = sdxl(
        *("gen", "a cat [red]", "--seed", 7, "--negative", "fog", "-q", "-o", "cat.png", "--steps", 2),
        *("--preset", tiny_folder / "tiny-base.toml", "--device", "cpu"),
        *("--crop", "8,16", "--original-size", "32x48"),
    )
    assert made.code == 0
    shown = sdxl("inspect", "cat.png").out
    for word in (
        "a cat [red]",
        "fog",
        "seed           7",
        "64x64",
        "euler",
        "tiny_base.safetensors",
        "original size  32x48",
        "crop           8,16",
        "model file     tiny_base.safetensors sha256",
        "made by a trained",
    ):
        assert word in shown
    assert sdxl("inspect", "cat.png", "--raw").out.startswith("a cat [red]\nNegative prompt: fog\nSteps: 2, ")
    document = json.loads(sdxl("inspect", "cat.png", "--json").out)
    assert document["record"]["plan"]["seed"] == 7
    assert "target size" not in shown
    sha256 = hashlib.sha256(Path("cat.png").read_bytes()).hexdigest()
    assert json.loads(sdxl("inspect", "cat.png", "--json", "--hash").out)["sha256"] == sha256
    assert sha256 in sdxl("inspect", "cat.png", "--hash").out


def test_only_a_picture_has_a_parameters_text(sdxl: Sdxl) -> None:
    refused = sdxl("inspect", "tiny_base", "--raw")
    assert (refused.code, refused.out) == (2, "")
    assert "is no picture" in refused.err


def test_pictures_of_other_programs_are_read(sdxl: Sdxl) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 8x8")
    info.add_text("workflow", '{"nodes": []}\x1b[31m')
    Image.new("RGB", (8, 8)).save("cat.png", pnginfo=info)
    shown = sdxl("inspect", "cat.png").out
    for word in ("a cat", "fog", "Euler a", "workflow", '{"nodes": []}[31m'):
        assert word in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "plan", ['"words"', "[1]", '{"size": [1]}', '{"sampler": 3, "size": "x"}', '{"prompt": {"deep": [null]}}']
)
def test_a_record_of_any_shape_is_survived(sdxl: Sdxl, plan: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("sdxl", f'{{"plan": {plan}, "weights": [1, {{}}], "versions": 3}}')
    Image.new("RGB", (8, 8)).save("odd.png", pnginfo=info)
    assert sdxl("inspect", "odd.png").code == 0
    assert sdxl("inspect", "odd.png", "--json").code == 0


def test_metadata_cannot_drive_the_terminal(sdxl: Sdxl) -> None:
    save_file({"x\x1b[2J": np.zeros(1, np.float32)}, "odd.safetensors", {"a\x07": "b\x1b]0;title\x07[/b]"})
    result = sdxl("inspect", "odd.safetensors", "--tensors")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "[/b]" in result.out


def test_several_files_are_told_apart(sdxl: Sdxl) -> None:
    Path("page.safetensors").write_text("<html>")
    result = sdxl("inspect", "tiny_base", "page.safetensors", "tiny_refiner")
    assert result.code == 3
    assert "an SDXL base" in result.out
    assert "an SDXL refiner" in result.out
    assert result.err.startswith("error: page.safetensors: a web page")


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("none.safetensors", 4, "no such model file"),
        ("none.png", 1, "error: none.png: no such file; did you mean torn.png?\nhint: looked in "),
        ("gone/none.jpg", 1, "error: gone/none.jpg: no such file, for there is no folder gone\n"),
        ("empty.safetensors", 4, "empty"),
        ("a folder", 4, "error: a folder: is a folder\nhint: give its files: sdxl inspect 'a folder'/*\n"),
        ("", 4, "error: the name of a model file is empty\nhint: perhaps a variable of the shell is not set\n"),
        ("text.png", 1, "error: text.png: not a PNG, JPEG or WebP picture\n"),
        ("text.tiff", 1, "error: text.tiff: not a PNG, JPEG or WebP picture\n"),
        ("gone.bmp", 1, "error: gone.bmp: no such file\nhint: looked in "),
        ("pipe", 4, "not a regular file"),
        ("text.txt", 4, "not a safetensors file"),
        ("torn.png", 0, "cut off"),
    ],
)
def test_what_cannot_be_described(sdxl: Sdxl, name: str, code: int, word: str) -> None:
    Path("empty.safetensors").touch()
    Path("a folder").mkdir()
    os.mkfifo("pipe")
    for ending in "txt", "png", "tiff":
        Path(f"text.{ending}").write_text("words " * 20)
    Path("torn.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    result = sdxl("inspect", name)
    assert result.code == code
    assert word in result.out + result.err
    assert "Traceback" not in result.err
