"""`sdxl gen` from prompt to picture, on a model of SDXL's shape that draws noise in a tenth of a second."""

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from support_cli import Sdxl
from support_tiny import CPU_PASSES, write_tiny_checkpoint

import sdxl_core
from sdxl_core import pipeline
from sdxl_core.picture_files import parse_parameters, read_record
from sdxl_core.plan import Plan


def pixels(path: Path) -> object:
    with Image.open(path) as image:
        return np.asarray(image).tolist()


def test_a_prompt_becomes_a_picture_and_a_path(gen: Sdxl, tiny_folder: Path) -> None:
    result = gen("a cat", "--seed", 7)
    assert (result.code, result.out) == (0, "outputs/00001-7-a-cat.png\n")
    assert "loading tiny_base.safetensors: " in result.err
    assert "1/1 seed 7, 3 model calls, " in result.err
    with Image.open(result.paths[0]) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
    assert os.listdir("outputs") == ["00001-7-a-cat.png"]


def test_the_record_tells_all(gen: Sdxl, tiny_folder: Path) -> None:
    path = gen("a cat", "--seed", 7, "--negative", "fog", "--sampler", "dpmpp_2m", "--schedule", "edm:rho=7").paths[0]
    found = read_record(path)
    assert found.problems == []
    assert found.machine_made
    record = found.record or {}
    plan = Plan.from_json(json.dumps(record["plan"]))
    sha256 = hashlib.sha256((tiny_folder / "tiny_base.safetensors").read_bytes()).hexdigest()
    assert (plan.prompt, plan.negative, plan.seed, plan.steps, plan.size) == ("a cat", "fog", 7, 3, (64, 64))
    assert (plan.file, plan.file_sha256) == ("tiny_base.safetensors", sha256)
    assert (plan.device, plan.dtype, plan.attention) in (
        ("cpu", "float32", "sdpa"),
        ("cpu", "bfloat16", "head_by_head"),
    )
    assert record["sigmas"] == list(plan.sigmas())
    assert record["model_calls"] == 3
    assert record["software"] == f"sdxl {sdxl_core.__version__}"
    assert {"torch", "python"} <= set(record["versions"])
    assert record["weights"] == [{"role": "model", "name": "tiny_base.safetensors", "sha256": sha256}]
    assert str(tiny_folder) not in path.read_bytes().decode("latin-1")
    prompt, negative, pairs = parse_parameters(found.parameters or "")
    assert (prompt, negative, pairs["Seed"], pairs["Sampler"]) == ("a cat", "fog", "7", "DPM++ 2M")
    assert (pairs["Model hash"], pairs["Schedule rho"]) == (sha256[:10], "7")


def test_seeds_count_up_and_a_batch_changes_nothing(gen: Sdxl) -> None:
    single = gen("a cat", "a dog", "--seed", 5, "-n", 2, "--dtype", "fp32", "-o", "single")
    batch = gen("a cat", "a dog", "--seed", 5, "-n", 2, "--dtype", "fp32", "-o", "batch", "-b", 4)
    assert [path.name for path in single.paths] == [
        "00001-5-a-cat.png",
        "00002-6-a-cat.png",
        "00003-5-a-dog.png",
        "00004-6-a-dog.png",
    ]
    for one, other in zip(single.paths, batch.paths, strict=True):
        difference = np.asarray(pixels(one), dtype=int) - np.asarray(pixels(other), dtype=int)
        assert np.abs(difference).max() <= 1
    assert len({str(pixels(path)) for path in single.paths}) == 4


def test_what_is_done_for_speed_is_recorded_and_can_be_left_out(gen: Sdxl, sdxl: Sdxl) -> None:
    fast, plain = (
        gen("a cat", "--seed", 7, "-o", name, "--dtype", "fp32", "--passes", how).paths[0]
        for name, how in (("fast", "auto"), ("plain", "none"))
    )
    difference = np.asarray(pixels(fast), dtype=int) - np.asarray(pixels(plain), dtype=int)
    assert np.abs(difference).max() <= 1
    records = [(read_record(path).record or {})["plan"]["passes"] for path in (fast, plain)]
    assert records == [list(CPU_PASSES), []]
    assert f"passes       {', '.join(CPU_PASSES)}\n" in sdxl("inspect", fast).out
    assert "kept_labels" in gen("a cat", "--passes", "kept_labels", "--dry-run").out


def test_the_same_line_gives_the_same_bytes(gen: Sdxl) -> None:
    first, second = (gen("a cat", "--seed", 7, "-o", folder).paths[0].read_bytes() for folder in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(
    "prompt", ["a cat [red dress]", "[/b] [bold]", "a :cat: 🐱 猫", "50% {seed} \\n", "-", "\x1b[31mred"]
)
def test_a_prompt_is_taken_as_typed(gen: Sdxl, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--prompts", "list.txt"] if prompt == "-" else [prompt]
    Path("list.txt").write_text("-\n")
    result = gen(*arguments, "--seed", 7)
    assert result.code == 0
    assert ((read_record(result.paths[0]).record or {})["plan"])["prompt"] == prompt
    assert prompt.replace("\x1b", "") in result.err
    assert "\x1b" not in result.err


def test_a_random_seed_is_shown_and_recorded(gen: Sdxl) -> None:
    result = gen("a cat")
    seed = int(result.err.splitlines()[0].removeprefix("seed "))
    assert ((read_record(result.paths[0]).record or {})["plan"])["seed"] == seed


def test_json_lines_carry_the_facts(gen: Sdxl) -> None:
    result = gen("a cat", "--seed", 7, "-n", 2, "--json", "--save-latents")
    for seed, line in zip((7, 8), result.out.splitlines(), strict=True):
        facts = json.loads(line)
        assert (facts["seed"], facts["prompt"], facts["width"], facts["height"]) == (seed, "a cat", 64, 64)
        assert facts["sha256"] == hashlib.sha256(Path(facts["path"]).read_bytes()).hexdigest()
        assert facts["seconds"] > 0
        assert Path(facts["latent"]).exists()


def test_latents_are_kept_with_their_record(gen: Sdxl, sdxl: Sdxl) -> None:
    path = gen("a cat", "--seed", 7, "--save-latents").paths[0].with_suffix(".latent.safetensors")
    latent = load_file(path)["latent"]
    assert (latent.shape, latent.dtype) == ((4, 8, 8), np.float32)
    assert "a latent of this program" in sdxl("inspect", path).out


def test_quiet_says_nothing_but_the_paths(gen: Sdxl) -> None:
    result = gen("a cat", "-q")
    assert (result.code, result.err) == (0, "")
    assert len(result.paths) == 1


@pytest.mark.parametrize(("name", "format"), [("x.jpg", "jpg"), ("x.webp", "webp"), ("deep/er/{seed}.jpeg", "jpg")])
def test_other_formats_record_too(gen: Sdxl, name: str, format: str) -> None:
    path = gen("a cat", "--seed", 7, "-o", name).paths[0]
    found = read_record(path)
    assert found.format == format
    assert ((found.record or {})["plan"])["seed"] == 7


def test_metadata_can_be_left_out(gen: Sdxl) -> None:
    found = read_record(gen("a cat", "--seed", 7, "--no-metadata").paths[0])
    assert (found.texts, found.record, found.machine_made) == ({}, None, False)


def test_an_existing_file_stays_unless_asked(gen: Sdxl) -> None:
    assert gen("a cat", "--seed", 7, "-o", "cat.png").code == 0
    before = Path("cat.png").read_bytes()
    refused = gen("a cat", "--seed", 8, "-o", "cat.png")
    assert refused.code == 1
    assert refused.err == "error: cat.png exists already\nhint: give another name, or --overwrite\n"
    assert Path("cat.png").read_bytes() == before
    assert gen("a cat", "--seed", 8, "-o", "cat.png", "--overwrite").code == 0
    assert Path("cat.png").read_bytes() != before
    assert gen("a cat", "--seed", 8, "-o", "{seed}.png").paths == [Path("8.png")]
    assert gen("a cat", "--seed", 8, "-o", "{seed}.png").paths == [Path("8-2.png")]


def test_calls_that_nobody_knows_beforehand_are_recorded_as_they_were_made(gen: Sdxl) -> None:
    adaptive = ("a cat", "--seed", 7, "--sampler", "dpm_adaptive:order=2,rtol=0.2")
    shown = gen(*adaptive, "--dry-run").out
    assert "as many as each picture needs, in 1 batch" in shown
    assert "rtol 0.2, steps of its own" in shown
    job = json.loads(gen(*adaptive, "--dry-run", "--json").out)
    assert (job["model_calls"], job["work"][1]["flop"]) == (None, None)
    assert "a picture" not in shown
    result = gen(*adaptive)
    with Image.open(result.paths[0]) as picture:
        record = json.loads(picture.info["sdxl"])
    assert record["model_calls"] > 3
    assert f"seed 7, {record['model_calls']} model calls" in result.err
    assert record["plan"]["sampler"] == {"name": "dpm_adaptive", "order": 2, "rtol": 0.2}


def test_guidance_is_in_the_record_and_in_the_printed_config(gen: Sdxl, sdxl: Sdxl) -> None:
    flags = ["--guider", "apg:eta=0.5", "--guider", "tcfg", "--guidance-interval", "0.1..9", "--seed", 1]
    path = gen("a cat", *flags).out.strip()
    line = next(line for line in sdxl("inspect", path).out.splitlines() if line.startswith("guidance"))
    assert line.split("  ", 1)[1].strip() == (
        "vanilla_cfg, scale 4, interval (unit sigma, low 0.1, high 9), tcfg, apg (eta 0.5, threshold 15, momentum -0.5)"
    )
    Path("mine.toml").write_text(gen("a cat", *flags, "--print-config").out)
    again = json.loads(gen("a cat", "--preset", "./mine.toml", "--dry-run", "--json").out)
    assert again["plan"]["guider"] == json.loads(gen("a cat", *flags, "--dry-run", "--json").out)["plan"]["guider"]
    shown = [line.split()[:2] for line in sdxl("presets", "show", "./mine.toml").out.splitlines()]
    assert ["recipe.guider.tcfg", "on"] in shown
    assert ["recipe.guider.apg.eta", "0.5"] in shown
    assert ["recipe.guider.pag", "-"] in shown


def test_a_model_file_is_said_to_be_what_it_is(gen: Sdxl, sdxl: Sdxl, tiny_folder: Path) -> None:
    result = gen("a cat", "--seed", 7, "--model", "tiny_base")
    assert result.code == 0
    assert "tiny_base.safetensors is an SDXL base (two text encoders, label_emb" in result.err


def test_another_vae_is_used_and_recorded(gen: Sdxl) -> None:
    write_tiny_checkpoint(Path("other.safetensors"), seed=1)
    path = gen("a cat", "--seed", 7, "--vae", "other.safetensors", "-o", "x").paths[0]
    weights = (read_record(path).record or {})["weights"]
    assert [w["role"] for w in weights] == ["model", "vae"]
    assert pixels(path) != pixels(gen("a cat", "--seed", 7).paths[0])


def test_a_name_taken_meanwhile_gets_the_next_free_one(gen: Sdxl) -> None:
    def take() -> None:
        deadline = time.monotonic() + 60
        while not Path("outputs").is_dir() and time.monotonic() < deadline:
            time.sleep(0.001)
        Path("outputs/00001-7-a-cat.png").write_bytes(b"theirs")

    thief = threading.Thread(target=take)
    thief.start()
    result = gen("a cat", "--seed", 7, "--steps", 30)
    thief.join()
    assert result.paths == [Path("outputs/00002-7-a-cat.png")]
    assert Path("outputs/00001-7-a-cat.png").read_bytes() == b"theirs"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_sampling_leaves_whole_pictures(gen: Sdxl, number: signal.Signals, code: int) -> None:
    def stop() -> None:
        deadline = time.monotonic() + 60
        while not list(Path().glob("outputs/*.png")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    stopper = threading.Thread(target=stop)
    stopper.start()
    result = gen("a cat", "--seed", 7, "-n", 200)
    stopper.join()
    assert result.code == code
    done = len(result.paths)
    assert 1 <= done < 200
    assert f"{done} of 200 pictures are done" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    for path in result.paths:
        pixels(path)
    # One may have been drawn and not yet decoded.
    assert sum(not name.endswith(".png") for name in os.listdir("outputs")) == result.err.count("its latent is kept in")


@pytest.mark.parametrize("flags", [[], ["--save-latents"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_decoding_keeps_the_latents_of_what_is_drawn(
    gen: Sdxl,
    sdxl: Sdxl,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    flags: list[str],
) -> None:
    batch = ("a cat", "--seed", 7, "-n", 4, "--batch-size", 4)
    whole = [path.read_bytes() for path in gen(*batch, "-o", "whole").paths]
    decode, begun = pipeline.decode, 0

    def stopped(*args: Any, **options: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == 2:
            os.kill(os.getpid(), number)
        return decode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "decode", stopped)
        result = gen(*batch, *flags)
    assert result.code == code
    assert [path.read_bytes() for path in result.paths] == whole[:1]
    latents = [f"outputs/0000{i}-{6 + i}-a-cat.latent.safetensors" for i in (1, 2, 3, 4)]
    said = latents[2:] if flags else latents[1:]
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    start = "the run ended before it was made; its latent is kept in "
    assert [line.rpartition(start)[2] for line in errors[:-1]] == said
    assert "1 of 4 pictures are done" in errors[-1]
    assert sorted(map(str, Path("outputs").glob("*.safetensors"))) == (latents if flags else said)
    assert sdxl("decode", *latents[1:], "--preset", tiny_folder / "tiny-base.toml").code == 0
    for path, picture in zip(latents[1:], whole[1:], strict=True):
        assert Path(path.replace(".latent.safetensors", ".png")).read_bytes() == picture


# A signal between `open` and `with` leaves the file for Python to close, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_while_loading_leaves_nothing(gen: Sdxl) -> None:
    def stop() -> None:
        deadline = time.monotonic() + 60
        while not Path("outputs").is_dir() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    result = gen("a cat", "--seed", 7, "--steps", 1000)
    stopper.join()
    assert (result.code, result.out) == (130, "")
    assert "0 of 1 picture is done" in result.err
    assert os.listdir("outputs") == []
