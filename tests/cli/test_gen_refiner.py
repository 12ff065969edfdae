"""`sdxl gen` with a second model, on two models of SDXL's shape."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support_cli import Sdxl

from sdxl_core.picture_files import parse_parameters, read_record
from sdxl_core.plan import Plan


@pytest.fixture
def refined(gen: Sdxl, tiny_folder: Path) -> Sdxl:
    """`sdxl gen` with both tiny models."""
    return lambda *argv: gen("--dtype", "fp32", "--refiner-preset", tiny_folder / "tiny-refiner.toml", *argv)


def pixels(path: Path) -> object:
    with Image.open(path) as image:
        return np.asarray(image).tolist()


def test_two_models_draw_one_picture_and_the_record_names_both(refined: Sdxl, tiny_folder: Path, sdxl: Sdxl) -> None:
    result = refined("a cat", "--seed", 7, "--steps", 10, "--refiner")
    assert (result.code, result.out) == (0, "outputs/00001-7-a-cat.png\n")
    assert "1/1 seed 7, 10 model calls, " in result.err
    assert "refiner share@0.8: tiny-base 8 steps, sigma 14.61 to " in result.err
    assert "switch at step 8, sigma 0.5693, fraction 0.801" in result.err
    found = read_record(result.paths[0])
    record = found.record or {}
    plan = Plan.from_json(json.dumps(record["plan"]))
    hashes = {
        role: hashlib.sha256((tiny_folder / f"tiny_{kind}.safetensors").read_bytes()).hexdigest()
        for role, kind in (("model", "base"), ("refiner", "refiner"))
    }
    assert {weights["role"]: weights["sha256"] for weights in record["weights"]} == hashes
    assert plan.refiner is not None
    assert (plan.refiner.model, plan.refiner.mode) == ("tiny-refiner", "share@0.8")
    assert plan.refiner.file_sha256 == hashes["refiner"]
    assert record["sigmas"] == list(plan.sigmas())
    assert record["refiner_sigmas"] == list(plan.refiner_sigmas())
    assert record["switch"]["step"] == 8
    assert record["switch"]["sigma"] == record["sigmas"][-1] == record["refiner_sigmas"][0]
    _, _, pairs = parse_parameters(found.parameters or "")
    assert pairs["Refiner"] == f"tiny_refiner [{hashes['refiner'][:10]}]"
    assert float(pairs["Refiner switch at"]) == pytest.approx(0.8, abs=0.01)
    assert "tiny-refiner, share@0.8, from step 8 (sigma 0.569" in sdxl("inspect", result.paths[0]).out


def test_handing_over_to_the_same_model_is_the_single_run(gen: Sdxl, tiny_folder: Path) -> None:
    both = ("a cat", "--seed", 7, "--steps", 6, "--dtype", "fp32")
    single = gen(*both, "-o", "single")
    cut = gen(*both, "-o", "cut", "--refiner-preset", tiny_folder / "tiny-base.toml", "--refine", "share@step=2")
    assert pixels(single.paths[0]) == pixels(cut.paths[0])


@pytest.mark.parametrize("mode", ["share@sigma=2", "steps@6/8", "sdedit@0.5"])
def test_every_mode_draws_another_picture(refined: Sdxl, gen: Sdxl, mode: str) -> None:
    result = refined("a cat", "--seed", 7, "--refine", mode, "--json", "-o", "two")
    facts = json.loads(result.out)
    assert (result.code, facts["refiner"]) == (0, "tiny-refiner")
    single = gen("a cat", "--seed", 7, "--dtype", "fp32", "--steps", facts["steps"], "-o", "one")
    assert pixels(Path(facts["path"])) != pixels(single.paths[0])


def test_where_the_resting_model_is_changes_nothing(refined: Sdxl) -> None:
    drawn = {}
    for memory in ("keep", "offload", "reload"):
        result = refined("a cat", "-n", 2, "--seed", 7, "--refine", "sdedit@0.5", "--memory", memory, "-o", memory)
        assert result.code == 0
        drawn[memory] = [path.read_bytes() for path in result.paths]
        loadings = 4 if memory == "reload" else 2
        assert result.err.count("loading tiny_") == loadings
    assert drawn["keep"] == drawn["offload"] == drawn["reload"]


def test_a_dry_run_shows_the_switch_and_where_both_models_are(refined: Sdxl) -> None:
    shown = refined(
        "a cat", "--steps", 10, "--refiner", "--sampler", "dpmpp_2m", "--memory", "offload", "--dry-run"
    ).out
    assert "switch at step 8" in shown
    assert "dpmpp_2m begins anew there, without its history" in shown
    assert "tiny_refiner.safetensors" in shown
    assert "keep (on the CPU offload is keep): weights of " in shown
    line = json.loads(refined("a cat", "--steps", 10, "--refiner", "--dry-run", "--json").out)
    assert line["plan"]["refiner"]["mode"] == "share@0.8"
    assert line["refiner_sigmas"][0] == line["sigmas"][-1]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--refiner"], 2, "names no refiner"),
        (["--no-refiner", "--refine", "share@0.8"], 2, "--no-refiner and --refine exclude each other"),
        (["--refine", "shaer@0.8", "--refiner-preset", "REFINER"], 2, "did you mean share@0.8?"),
        (["--refiner", "--refiner-preset", "REFINER"], 2, "outside the schedule of 3 steps: the second model"),
        (["--refine", "steps@4/9", "--steps", "5", "--refiner-preset", "REFINER"], 2, "speaks of 9 steps"),
        (["--aesthetic-score", "7"], 2, "an aesthetic score has no effect: tiny-base reads none"),
        (["--refiner", "--aesthetic-score", "11"], 2, "--aesthetic-score: must be at most 10.0, got 11.0"),
        (["--refiner-preset", "REFINER", "--refiner-model", "tiny_base.safetensors"], 4, "needs an SDXL refiner"),
        (["--model", "tiny_refiner.safetensors"], 4, "needs an SDXL base"),
        (["--refiner-preset", "REFINER", "--refiner-model", "none.safetensors"], 4, "none.safetensors"),
        (["--refiner-preset", "nobody"], 2, "no preset is named"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_refined_is_one_error(
    gen: Sdxl, tiny_folder: Path, argv: list[str], code: int, message: str
) -> None:
    Path("cat.png").write_bytes(b"mine")
    argv = [str(tiny_folder / "tiny-refiner.toml") if word == "REFINER" else word for word in argv]
    result = gen("a cat", "-o", "out", *argv)
    assert (result.code, result.out) == (code, "")
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert Path("cat.png").read_bytes() == b"mine"
    assert not Path("out").exists()
