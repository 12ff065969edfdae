"""What a user can get wrong: one error, one hint where there is one, the documented code, nothing written."""

import json
import os
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_cli import Result, Sdxl
from support_files import room_for
from support_tiny import tiny_config, write_preset

from sdxl_core.conditioning.tokenizer import Tokenizer
from sdxl_core.config import ModelFile


def refused(result: Result, code: int, *words: str) -> None:
    """The run failed as documented, in plain words, and wrote no file."""
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in result.err
    assert result.out == ""
    assert not list(Path().rglob("*.png"))
    assert not list(Path().rglob("*.part"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sampler", "eulr"], ["unknown sampler 'eulr'", "did you mean", "euler"]),
        (["--sampler", "euler:s_churm=1"], ["--sampler", "s_churm", "did you mean s_churn"]),
        (["--sampler", "euler:s_churn"], ["--sampler", "key=value"]),
        (["--sampler", "dpmpp_2m:eta=1"], ["--sampler", "'dpmpp_2m' has no option 'eta'"]),
        (["--sampler", "euler:name=heun"], ["--sampler", "'euler' has no option 'name'"]),
        (["--sampler", "euler:s_churn=much"], ["--sampler", "s_churn", "a number of at least 0, not 'much'"]),
        (["--sampler", "lms:order=2.5"], ["--sampler", "order", "must be 1, 2, 3 or 4, not 2.5"]),
        (["--schedule", "karas"], ["unknown schedule 'karas'", "did you mean karras?"]),
        (["--schedule", "edn"], ["did you mean edm?"]),
        (["--schedule", "ddpm:rho=7"], ["rho"]),
        (["--steps", "0"], ["--steps", "at least 1"]),
        (["--steps", "-3"], ["--steps", "at least 1"]),
        (["--steps", "1001"], ["1000"]),
        (["--count", "0"], ["--count", "at least 1"]),
        (["--batch-size", "0"], ["--batch-size", "at least 1"]),
        (["--seed", "-1"], ["seed -1"]),
        (["--seed", str(2**64)], ["seed"]),
        (["--size", "1000x1001"], ["1000x1001", "divide by 8", "try 1000x1000"]),
        (["--size", "big"], ["--size 'big'", "WIDTHxHEIGHT"]),
        (["--size", "0x64"], ["--size '0x64' is no size"]),
        (["--aspect", "wide"], ["--aspect 'wide'", "16:9"]),
        (["--aspect", "1:0"], ["--aspect"]),
        (["--aspect", "1:1", "--size", "64x64"], ["size and an aspect"]),
        (["--crop", "5"], ["--crop", "TOP,LEFT"]),
        (["--original-size", "0x0"], ["--original-size"]),
        (["--guidance", "nan"], ["--guidance"]),
        (["--guider", "pga"], ["unknown guider 'pga'", "did you mean pag?", "apg, fdg"]),
        (["--guider", "pag:scal=2"], ["--guider pag: scal: unknown key", "did you mean scale?"]),
        (["--guider", "pag:scale"], ["--guider", "key=value"]),
        (["--guider", "pag:scale=big"], ["--guider pag: scale: expected a number"]),
        (["--guider", "tcfg:scale=2"], ["--guider tcfg: scale: unknown key"]),
        (["--guider", "rescale:phi=2"], ["--guider rescale: phi", "at most 1"]),
        (["--guider", "rescale:space=x"], ["--guider rescale: space: expected eps or v"]),
        (["--guider", "seg:blur=0"], ["--guider seg: blur", "more than 0"]),
        (
            ["--guider", "pag:stages=input_blocks.1"],
            ["pag: 'input_blocks.1' is no stage of the network with attention"],
        ),
        (["--guider", "cfg_zero_star:zero_init=3"], ["zero_init 3 leaves none of the 3 steps"]),
        (["--guidance-interval", "5"], ["--guidance-interval '5' is no interval", "0.28..5.42"]),
        (["--guidance-interval", "5..1"], ["--guidance-interval: low 5 is not below high 1"]),
        (["--guidance-interval", "steps:1..3"], ["unknown unit 'steps'", "did you mean step?"]),
        (["--guidance-interval", "percent:10..120"], ["more than 100 percent"]),
        (["--guidance-interval", "step:7..9"], ["holds none of the 3 steps", "start at sigma"]),
        (["--format", "gif"], ["gif"]),
        (["-o", "cat.gif"], [".gif", "png, jpg, webp"]),
        (["-o", "cat.jpg", "--format", "png"], ["disagrees"]),
        (["-o", "{sead}.png"], ["{sead}", "did you mean {seed}"]),
        (["-o", "{seed.real}.png"], ["seed.real"]),
        (["-o", "{seed"], ["does not parse"]),
        (["-o", "cat.png", "-n", "2"], ["one file", "2 pictures"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "auto, cpu, cuda, cuda:N"]),
        (["--device", "cude", "--dry-run"], ["did you mean cuda?"]),
        (["--dtype", "float8"], ["unknown dtype 'float8'", "did you mean"]),
        (["--dtype", "fb16", "--dry-run"], ["did you mean"]),
        (["--attention", "flsh", "--dry-run"], ["unknown attention backend 'flsh'", "did you mean flash?"]),
        (["--passes", "fused", "--dry-run"], ["--passes: unknown pass 'fused'", "fused_qkv"]),
        (["-n", "1000000000", "--dry-run"], ["1000000000 pictures are too many"]),
        (["-o", f"{'n' * 300}.png"], ["longer than"]),
        (["-", "-"], ["standard input can be read only once"]),
        (["-", "--prompts", "-"], ["standard input can be read only once"]),
        (["--prompts", "none.txt"], ["none.txt", "No such file"]),
    ],
)
def test_a_flag_that_cannot_be_honoured(gen: Sdxl, flags: list[str], words: list[str]) -> None:
    refused(gen("a cat", *flags), 2, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test lacks")
def test_cuda_where_there_is_none(gen: Sdxl) -> None:
    refused(gen("a cat", "--device", "cuda"), 2, "cuda")


@pytest.mark.parametrize("prompts", [[""], ["  "], ["a cat", "\t"]])
def test_an_empty_prompt(gen: Sdxl, prompts: list[str]) -> None:
    refused(gen(*prompts), 2, "the prompt is empty")


def test_among_many_prompts_it_is_said_which_cannot_be_joined(gen: Sdxl) -> None:
    refused(gen("a cat", "a dog AND ", "a fox"), 2, "prompt 2 of 3: the prompt says nothing in part 2")
    refused(gen("a cat", "a :0 AND b :-1"), 2, "prompt 2 of 2: the prompt has no part with a weight above 0")


def test_no_prompt_at_all(gen: Sdxl) -> None:
    refused(gen(), 2, "no prompt", 'sdxl gen "a cat"')


def test_a_prompt_that_is_no_text(gen: Sdxl) -> None:
    refused(gen("caf\udce9"), 2, "not valid UTF-8")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a cat\nna\xefve\n", ["list.txt", "byte 0xef at line 2, byte 3", "iconv -f latin1 -t utf-8"]),
        (b"\n# only a comment\n", ["no prompt in list.txt"]),
        (b"\xff\xfea\0", ["byte 0xff at line 1, byte 1", "iconv -f utf-16 -t utf-8"]),
    ],
)
def test_a_prompt_file_that_is_no_list(gen: Sdxl, content: bytes, words: list[str]) -> None:
    Path("list.txt").write_bytes(content)
    refused(gen("--prompts", "list.txt"), 2, *words)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[recipe", ["line 1"]),
        ("[recipe]\nstepz = 3", ["base"]),
        ('base = "sdxl-base-1.0"\n[recipe]\nstepz = 3', ["recipe.stepz", "did you mean steps"]),
        ('base = "sdxl-base-1.0"\n[recipe]\nsteps = "many"', ["recipe.steps", "whole number"]),
        (f"{'a.' * 30000}a = 1", ["mine.toml"]),
        (f"a = {'[' * 30000}", ["mine.toml"]),
        ('base = "sdxl-bas-1.0"', ["did you mean sdxl-base-1.0"]),
    ],
)
def test_a_preset_that_cannot_be_read(sdxl: Sdxl, toml: str, words: list[str]) -> None:
    Path("mine.toml").write_text(toml)
    refused(sdxl("gen", "a cat", "--preset", "mine.toml"), 2, *words)


def test_an_unknown_preset(sdxl: Sdxl) -> None:
    refused(sdxl("gen", "a cat", "--preset", "sdxl-base"), 2, "sdxl-base", "did you mean sdxl-base-1.0")


def test_a_preset_whose_file_is_missing(sdxl: Sdxl) -> None:
    refused(sdxl("gen", "a cat", "--preset", "sdxl-base-1.0"), 4, "sd_xl_base_1.0", "sdxl pull sdxl-base-1.0")


def header_of(table: object, data: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\0" * 4, ["not a safetensors file"]),
        (b"\0" * 4000, ["not a safetensors file"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ["Git-LFS", "git lfs pull"]),
        (b"<!DOCTYPE html><html>", ["web page"]),
        (b"PK\x03\x04" + b"\0" * 100, ["pickle", "safetensors"]),
        (b"\x80\x02}q\0.", ["pickle"]),
        (struct.pack("<Q", 2**40) + b"{}", ["header"]),
        (header_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), ["cut off"]),
        (header_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16), ["unknown kind"]),
        (header_of([]), ["not a safetensors file"]),
        (header_of({"a": 1}), ["header"]),
        (
            header_of(
                {"lora_unet_x.lora_down.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4
            ),
            ["a LoRA", "give the model itself"],
        ),
    ],
)
def test_a_model_file_that_is_none(sdxl: Sdxl, content: bytes, words: list[str]) -> None:
    Path("model.safetensors").write_bytes(content)
    refused(sdxl("gen", "a cat", "--model", "model.safetensors", "--device", "cpu"), 4, *words)


def test_a_model_file_that_is_missing(sdxl: Sdxl) -> None:
    refused(sdxl("gen", "a cat", "--model", "tiny_basa"), 4, "tiny_basa", "did you mean tiny_base")
    refused(sdxl("gen", "a cat", "--model", "/nowhere/x.safetensors"), 4, "no such file")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dtype fp16", "float16 cannot be used on the CPU"),
        ("--device cuda:99", "device 'cuda:99' "),
        ("--attention cudnn", "'cudnn' cannot be used: it needs a CUDA device"),
        ("--passes auto,cuda_graph", "the pass cuda_graph cannot be made"),
    ],
)
def test_a_dry_run_refuses_what_this_machine_has_not_as_drawing_does(gen: Sdxl, flags: str, words: str) -> None:
    run = ("a cat", "--seed", 7, *flags.split())
    drawn, shown = gen(*run), gen(*run, "--dry-run")
    refused(drawn, 2, words)
    assert (shown.code, shown.out, shown.err) == (drawn.code, "", drawn.err)
    assert gen(*run, "--dry-run", "--json").err == drawn.err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("-o file", 1, "cannot write to file: it is a file, not a folder"),
        ("-o file/below/cat.png", 1, "cannot write to file/below: Not a directory"),
        ("--vae tiny_basa", 4, "did you mean tiny_base?"),
        ("--vae lora.safetensors", 4, "lora.safetensors: no VAE in the original layout"),
        ("--preset sdxl-base-1.0 --model tiny_base", 4, "not the network of preset sdxl-base-1.0: model_channels 32 "),
        ("--preset sdxl-base-1.0 --model lora.safetensors", 4, "preset sdxl-base-1.0 needs an SDXL base, this is a"),
        ("--refiner-preset sdxl-refiner-1.0 --refiner-model tiny_refiner", 4, "not the network of preset sdxl-refiner"),
    ],
)
def test_a_dry_run_refuses_what_a_look_at_the_files_tells_as_drawing_does(
    gen: Sdxl, flags: str, code: int, words: str
) -> None:
    Path("file").touch()
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, "lora.safetensors")
    run = ("a cat", "--seed", 7, *flags.split())
    drawn, shown = gen(*run), gen(*run, "--dry-run")
    refused(drawn, code, words)
    assert "loading" not in drawn.err
    assert (shown.code, shown.out, shown.err) == (drawn.code, "", drawn.err)


def test_a_pipe_as_a_model_does_not_hang(sdxl: Sdxl) -> None:
    os.mkfifo("model.safetensors")
    refused(sdxl("gen", "a cat", "--model", "model.safetensors"), 4, "not a regular file")


def test_a_model_of_the_wrong_kind(gen: Sdxl, sdxl: Sdxl) -> None:
    refused(gen("a cat", "--model", "tiny_refiner"), 4, "an SDXL refiner", "needs an SDXL base")
    refused(sdxl("gen", "a cat", "--model", "tiny_refiner"), 4, "an SDXL refiner")


def test_a_vae_of_the_wrong_kind(gen: Sdxl, tiny_folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, "vae.safetensors")
    refused(gen("a cat", "--vae", "vae.safetensors", "--dtype", "fp32"), 4, "vae.safetensors")


def test_a_model_with_missing_and_misshaped_tensors(gen: Sdxl, tiny_folder: Path) -> None:
    tensors = load_file(tiny_folder / "tiny_base.safetensors")
    del tensors["model.diffusion_model.time_embed.0.bias"]
    tensors["model.diffusion_model.out.0.weight"] = torch.zeros(3)
    save_file(tensors, "broken.safetensors")
    refused(
        gen("a cat", "--model", "./broken.safetensors"),
        4,
        "1 missing (model.diffusion_model.time_embed.0.bias)",
        "1 mis-shaped (model.diffusion_model.out.0.weight [3] instead of [32])",
    )


def test_weights_that_are_not_finite_write_no_picture(tiny_folder: Path, sdxl: Sdxl) -> None:
    tensors = load_file(tiny_folder / "tiny_base.safetensors")
    tensors["model.diffusion_model.out.2.bias"][0] = float("nan")
    save_file(tensors, "nan.safetensors")
    config = tiny_config().model_copy(update={"file": ModelFile(name="./nan.safetensors")})
    write_preset(Path("nan.toml"), config, "recipe = {steps = 2}\n")
    result = sdxl("gen", "a cat", "-n", 2, "-b", 2, "--seed", 7, "--preset", "./nan.toml", "--device", "cpu")
    assert (result.code, result.out) == (1, "")
    assert result.err.count("error: picture ") == 2
    assert "picture 2 of 2 (seed 8, 'a cat'): the latent of seed 8 is not finite" in result.err
    assert os.listdir("outputs") == []


def test_one_bad_picture_does_not_spoil_the_others(tiny_folder: Path, sdxl: Sdxl) -> None:
    tensors = load_file(tiny_folder / "tiny_base.safetensors")
    (dog,) = Tokenizer("clip").encode("dog")
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"][dog] = float("nan")
    save_file(tensors, "tiny_base.safetensors")
    result = sdxl(
        *("gen", "a cat", "a dog", "a fox", "-b", 3, "--seed", 7, "--model", "./tiny_base.safetensors"),
        *("--preset", tiny_folder / "tiny-base.toml", "--device", "cpu"),
    )
    assert result.code == 3
    assert [path.name for path in result.paths] == ["00001-7-a-cat.png", "00003-7-a-fox.png"]
    assert result.err.count("error: ") == 1
    assert "error: picture 2 of 3 (seed 7, 'a dog')" in result.err


def test_a_picture_that_no_memory_holds(gen: Sdxl) -> None:
    refused(gen("a cat", "--size", "16384x16384", "--decoding", "whole"), 5, "memory", "--size")


def test_an_output_that_cannot_be_written_is_found_before_the_model_is_loaded(gen: Sdxl) -> None:
    Path("file").touch()
    result = gen("a cat", "-o", "file/below/cat.png")
    refused(result, 1, "cannot write to file/below", "choose another place")
    assert "loading" not in result.err


def test_a_disk_that_fills_up_leaves_the_latents_of_what_was_drawn_and_nothing_half_written(gen: Sdxl) -> None:
    with room_for(8192):
        result = gen("a cat", "-n", 3, "--seed", 7)
    assert result.code == 1
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    kept = [f"outputs/0000{i}-{6 + i}-a-cat.latent.safetensors" for i in range(1, 1 + len(errors))]
    for i, path in enumerate(kept, 1):
        line = f"error: cannot write outputs/0000{i}-{6 + i}-a-cat.png: File too large; its latent is kept in {path}"
        assert [error for error in errors if error.startswith(line)]
    assert errors[-1].endswith(kept[0])
    assert f"hint: 'sdxl decode {kept[0]}' makes the picture of it\n" in result.err
    assert sorted(map(str, Path("outputs").iterdir())) == kept


def test_where_a_latent_lies_already_that_of_a_lost_picture_is_kept_among_temporary_files(
    gen: Sdxl, sdxl: Sdxl, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gen("a cat", "--seed", 7, "-o", "whole.png").paths[0].read_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = Path("cat.latent.safetensors")
    mine.write_bytes(b"of another day")
    with room_for(8192):
        result = gen("a cat", "--seed", 7, "-o", "cat.png")
    (kept,) = tmp_path.glob("sdxl-*/cat.latent.safetensors")
    assert result.code == 1
    assert f"error: cannot write cat.png: File too large; its latent is kept in {kept}\n" in result.err
    assert mine.read_bytes() == b"of another day"
    assert not Path("cat.png").exists()
    assert sdxl("decode", kept, "-o", "cat.png", "--preset", tiny_folder / "tiny-base.toml").code == 0
    assert Path("cat.png").read_bytes() == whole


def test_a_record_that_does_not_fit_into_the_format_leaves_the_latent(gen: Sdxl) -> None:
    Path("long.txt").write_text("cat " * 9000)
    result = gen("--prompts", "long.txt", "--seed", 7, "-o", "cat.jpg")
    refused(result, 1, "the record does not fit into a jpg file", "its latent is kept in cat.latent.safetensors")
    assert os.path.getsize("cat.latent.safetensors") > 36_000  # with the record


def test_a_disk_that_fills_up_amid_a_batch_leaves_the_latents_of_all_of_it(gen: Sdxl) -> None:
    with room_for(8192):
        result = gen("a cat", "-n", 6, "--batch-size", 6, "--seed", 7)
    assert result.code == 1
    kept = [f"outputs/0000{i}-{6 + i}-a-cat.latent.safetensors" for i in range(1, 7)]
    assert sorted(map(str, Path("outputs").iterdir())) == kept
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert sorted(line.rpartition("; its latent is kept in ")[2] for line in errors) == kept
    for i in range(4, 7):
        start = f"error: picture {i} of 6 (seed {6 + i}, 'a cat'): the run ended before it was made; its latent is kept"
        assert [line for line in errors if line.startswith(start)]


@pytest.mark.parametrize("flags", [[], ["--save-latents"]])
def test_nothing_is_written_through_a_link_out_of_the_folder_and_the_latent_is_kept_elsewhere(
    gen: Sdxl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out", "a-cat").symlink_to(Path("elsewhere").resolve())
    result = gen("a cat", "-o", "out/{slug}/cat.png", *flags)
    (kept,) = tmp_path.glob("sdxl-*/cat.latent.safetensors")
    refused(result, 1, "lies outside out", f"its latent is kept in {kept}")
    assert os.listdir("elsewhere") == []
