"""What `sdxl gen` makes of its flags before anything is drawn: jobs, recipes, and what it says of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from support_cli import Sdxl
from support_files import published_shapes, sparse_file

from sdxl_core.plan import Plan

ROOT = Path(__file__).parents[2]


def test_prompts_come_from_files_and_standard_input(gen: Sdxl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("list.txt").write_bytes(b"\xef\xbb\xbf# a list\r\n\r\na fox\r\n  a hen  \r\n")
    (tmp_path / "stdin").write_text("a pig\n")
    with open(tmp_path / "stdin") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        result = gen("a cat", "-", "--prompts", "list.txt", "--dry-run", "--seed", 1, "--json")
    assert [json.loads(line)["plan"]["prompt"] for line in result.out.splitlines()] == [
        "a cat",
        "a pig",
        "a fox",
        "a hen",
    ]


def test_standard_input_is_left_alone_without_a_dash(gen: Sdxl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", object())  # nothing that could be read
    assert gen("a cat", "--dry-run").code == 0


def test_a_dry_run_shows_the_jobs_and_touches_nothing(gen: Sdxl) -> None:
    result = gen("a cat", "a [dog]", "--seed", 7, "-n", 2, "--steps", 20, "--sampler", "heun", "--dry-run")
    assert result.code == 0
    for word in (
        "14.61",
        "... ",
        "TFLOP",
        "a picture",
        "heun, 20 steps",
        "156 in 4 batches",
        "00004-8-a-dog.png",
        "a [dog]",
    ):
        assert word in result.out
    lines = gen("a cat", "--seed", 7, "--dry-run", "--json").out.splitlines()
    job = json.loads(lines[0])
    assert Plan.from_json(json.dumps(job["plan"])).seed == 7
    assert (job["path"], job["model_calls"], job["sigmas"][-1]) == ("outputs/00001-7-a-cat.png", 3, 0.0)
    assert os.listdir() == []


def test_a_dry_run_waits_for_torch_only_where_the_machine_may_lack_what_is_named() -> None:
    code = "import sys; from sdxl_cli.boundary import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for flags, waits in ((), False), (("--dtype", "fp32", "--passes", "none"), False), (("--dtype", "bf16"), True):
        line = [sys.executable, "-c", code, "gen", "a cat", "--preset", "micro", "--device", "cpu", "--dry-run", *flags]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == waits, done.stderr


def test_a_cfg_pp_sampler_asks_for_little_guidance(gen: Sdxl) -> None:
    flags = ("a cat", "a dog", "--seed", 7, "--sampler", "euler_cfg_pp", "--dry-run")
    assert gen(*flags, "--guidance", 5).err.count("is meant for a guidance of 0.5 to 1.5, and 5 is more") == 1
    assert "guidance" not in gen(*flags, "--guidance", 1).err
    assert "guidance" not in gen("a cat", "--seed", 7, "--guidance", 5, "--dry-run").err


def test_changes_of_guidance_where_there_is_none_are_told(gen: Sdxl) -> None:
    def told(*flags: object) -> str:
        return gen("a cat", "--seed", 7, "--dry-run", *flags).err

    assert "no effect" not in told("--guidance", 1, "--guider", "pag", "--guider", "fdg")
    assert "tcfg, apg: no effect" in told("--guidance", 1, "--guider", "apg", "--guider", "tcfg", "--guider", "pag")
    assert "no effect" not in told("--guidance", 2, "--guider", "apg")


def test_a_dry_run_shows_what_guides_where_and_at_what_cost(gen: Sdxl) -> None:
    flags = ["--steps", 10, "--guidance-interval", "step:3..5", "--guider", "tcfg", "--guider", "pag:scale=2"]
    facts = dict(line.split("  ", 1) for line in gen("a cat", *flags, "--dry-run").out.split("\n\n")[0].splitlines())
    assert facts["guidance"].strip() == (
        "4, interval (unit step, low 3, high 5, steps 3 of 10), tcfg, pag (scale 2, stages middle_block)"
    )
    assert facts["model calls"].strip() == "10 in 1 batch, 16 network rows a picture"
    job = json.loads(gen("a cat", *flags, "--dry-run", "--json").out)
    assert (job["model_calls"], job["network_rows"]) == (10, 16)
    assert [(part["part"], part["calls"], part["rows"]) for part in job["work"]] == [
        ("text", 1, 1),
        ("network", 10, 16),
        ("decode", 1, 1),
    ]
    assert job["plan"]["guider"]["interval"] == {"unit": "step", "low": 3.0, "high": 5.0}


def test_the_printed_config_is_a_preset_that_gives_the_same_picture(gen: Sdxl, sdxl: Sdxl) -> None:
    flags = [
        "--steps",
        2,
        "--guidance",
        2.5,
        "--sampler",
        "euler_ancestral:eta=0.5",
        "--crop",
        "8,16",
        "--aspect",
        "1:1",
    ]
    printed = gen("a cat", *flags, "--negative", 'say "no"\n\x7f', "--print-config")
    config = tomli.loads(printed.out)
    assert config["recipe"]["crop_coords_top_left"] == [8, 16]
    assert config["recipe"]["negative"] == 'say "no"\n\x7f'
    Path("mine.toml").write_text(printed.out)
    with_flags = gen("a cat", "--seed", 7, *flags, "--negative", 'say "no"\n\x7f', "--dry-run", "--json")
    with_preset = sdxl("gen", "a cat", "--seed", 7, "--preset", "./mine.toml", "--device", "cpu", "--dry-run", "--json")
    assert json.loads(with_preset.out)["plan"] == json.loads(with_flags.out)["plan"]


def test_a_printed_recipe_stands_on_the_model_alone(sdxl: Sdxl, tiny_folder: Path) -> None:
    Path("mine.toml").write_text(
        f"base = '{tiny_folder}/tiny-base.toml'\n[recipe.discretization]\nname = 'edm'\nrho = 7.0\n"
    )
    printed = sdxl("gen", "--preset", "./mine.toml", "--schedule", "ddpm", "--print-config")
    config = tomli.loads(printed.out)
    assert config["base"] == str(tiny_folder / "tiny-base.toml")
    assert config["recipe"]["discretization"] == {"name": "legacy_ddpm"}
    assert tomli.loads(sdxl("gen", "--preset", "sdxl-fast", "--print-config").out)["base"] == "sdxl-base-1.0"


def test_sizes_and_words_reach_the_plan(gen: Sdxl) -> None:
    result = gen(
        *("a cat", "--prompt-2", "in oil", "--negative-2", "fog", "--size", "96x64", "--original-size", "48x32"),
        *("--target-size", "96x64", "--crop", "0,8", "--dtype", "bf16", "--dry-run", "--json", "--seed", 1),
    )
    plan = json.loads(result.out)["plan"]
    assert (plan["prompt_2"], plan["negative_2"], plan["size"]) == ("in oil", "fog", [64, 96])
    assert (plan["original_size"], plan["target_size"]) == ([32, 48], [64, 96])
    assert (plan["crop_coords_top_left"], plan["dtype"]) == ([0, 8], "bfloat16")


def test_an_aspect_takes_the_nearest_published_size(sdxl: Sdxl) -> None:
    line = ["gen", "a cat", "--preset", "sdxl-base-1.0", "--aspect", "16:9", "--dry-run", "--json", "--seed", 1]
    assert json.loads(sdxl(*line).out)["plan"]["size"] == [768, 1344]


def test_lost_words_are_said(gen: Sdxl) -> None:
    result = gen(" ".join(f"word{chr(97 + i % 26)}" for i in range(60)) + " the very end", "--dry-run")
    assert result.code == 0
    assert "tokens and only 75 fit: the last " in result.err
    assert "the very end" in result.err


def test_without_any_model_file_micro_stands_in_and_says_so(sdxl: Sdxl) -> None:
    result = sdxl("gen", "a cat", "--seed", 1, "--dry-run")
    assert result.code == 0
    notes = result.err.splitlines()
    assert len(notes) == 1
    assert "micro" in notes[0]
    assert "sdxl pull sdxl-base-1.0" in notes[0]


def test_with_the_published_file_sdxl_is_the_choice(
    sdxl: Sdxl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The layout of a ComfyUI folder; a dry run asks a model file what its network is and predicts.
    folder = tmp_path / "comfy" / "models" / "checkpoints"
    folder.mkdir(parents=True)
    sparse_file(folder / "sd_xl_base_1.0.safetensors", published_shapes("base"))
    monkeypatch.setenv("SDXL_EXTRA_MODELS", f"/nowhere:{tmp_path / 'comfy'}")
    result = sdxl("gen", "a cat", "--seed", 1, "--dry-run", "--json")
    assert json.loads(result.out)["plan"]["model"] == "sdxl-base-1.0"
    assert result.err == ""
