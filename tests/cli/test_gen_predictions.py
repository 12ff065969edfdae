"""Models that predict something else than their preset says, told from their files or by a flag."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support_cli import Result, Sdxl
from support_tiny import tiny_tensors
from torch import Tensor

from sdxl_core.picture_files import read_record

MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
MARKERS: dict[str, dict[str, Tensor]] = {
    "v": {"v_pred": torch.zeros(0)},
    "v_ztsnr": {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
    "edm": {"edm_mean": torch.tensor(MEAN), "edm_std": torch.tensor(STD)},
    "edm_v": {"edm_vpred.sigma_min": torch.tensor(0.004), "edm_vpred.sigma_max": torch.tensor(100.0)},
}


def marked(folder: Path, name: str, **metadata: str) -> Path:
    path = folder / f"marked-{name}.safetensors"
    save_file(tiny_tensors() | MARKERS.get(name, {}), path, metadata)
    return path


def plan_of(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    document: dict[str, Any] = json.loads(result.out)
    return document


def record_of(result: Result) -> Mapping[str, Any]:
    record = read_record(result.paths[0]).record
    assert record is not None
    return record


@pytest.mark.parametrize("name", MARKERS)
def test_a_marked_model_is_run_as_it_was_trained(gen: Sdxl, tmp_path: Path, name: str) -> None:
    result = gen("a cat", "--seed", 1, "--steps", 2, "--model", marked(tmp_path, name))
    assert result.code == 0, result.err
    assert f"predicts {name} (the file has " in result.err
    plan = record_of(result)["plan"]
    expected = {
        "v": {"scaling": "v", "zero_terminal_snr": None},
        "v_ztsnr": {"scaling": "v", "zero_terminal_snr": "comfy"},
        "edm": {"scaling": "edm", "sigma_min": None},
        "edm_v": {"scaling": "edm_v", "sigma_max": 100.0},
    }[name]
    assert plan["denoiser"].items() >= expected.items()
    if name == "edm":
        assert plan["scale_factor"] == 0.5
        assert plan["latent_mean"] == pytest.approx(MEAN)
        assert plan["latent_std"] == pytest.approx(STD)


def test_the_levels_are_the_models_own(gen: Sdxl, tmp_path: Path) -> None:
    path = marked(tmp_path, "edm_v")
    drawn = plan_of(gen("a cat", "--model", path, "--schedule", "edm:rho=7", "--dry-run", "--json"))
    assert (drawn["sigmas"][0], drawn["sigmas"][-2]) == pytest.approx((100.0, 0.004))
    drawn = plan_of(gen("a cat", "--model", marked(tmp_path, "v_ztsnr"), "--dry-run", "--json"))
    assert drawn["sigmas"][0] == pytest.approx(4518.76, abs=0.01)


def test_a_flag_overrules_the_file_and_says_so(gen: Sdxl, tmp_path: Path) -> None:
    path = marked(tmp_path, "v")
    result = gen("a cat", "--model", path, "--prediction", "flow", "--shift", "2.5", "--dry-run", "--json")
    plan = plan_of(result)["plan"]
    assert (plan["denoiser"]["scaling"], plan["denoiser"]["shift"]) == ("flow", 2.5)
    assert "predicts flow (as asked for, though the file has v_pred)" in result.err
    facts = gen("a cat", "--model", path, "--dry-run").out
    assert "v (the file has v_pred)" in " ".join(facts.split())


def test_a_recipe_can_say_it(gen: Sdxl, sdxl: Sdxl, tmp_path: Path, tiny_folder: Path) -> None:
    preset = tmp_path / "asp.toml"
    preset.write_text(f"base = '{tiny_folder}/tiny-base.toml'\n[recipe]\nprediction = 'flow'\nshift = 3.0\n")
    result = sdxl("gen", "a cat", "-p", preset, "--seed", 1, "--device", "cpu")
    assert result.code == 0, result.err
    plan = record_of(result)["plan"]
    assert (plan["denoiser"]["scaling"], plan["denoiser"]["shift"]) == ("flow", 3.0)
    assert 'prediction = "flow"' in sdxl("gen", "-p", preset, "--print-config").out


def test_a_name_that_hints_is_told_and_not_followed(gen: Sdxl, tmp_path: Path) -> None:
    path = tmp_path / "pretty-vpred.safetensors"
    marked(tmp_path, "nothing").rename(path)
    result = gen("a cat", "--model", path, "--dry-run", "--json")
    assert plan_of(result)["plan"]["denoiser"]["scaling"] == "eps"
    assert "add --prediction v if" in " ".join(result.err.split())
    assert "add --prediction" not in gen("a cat", "--model", path, "--prediction", "eps", "--dry-run").err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prediction", "v_pred"], ["unknown prediction 'v_pred'; did you mean v?"]),
        (["--prediction", "v_ztsrn"], ["unknown prediction 'v_ztsrn'; did you mean v_ztsnr?", "one of: eps, v,"]),
        (["--shift", "3"], ["only flows have, and this model predicts eps", "--prediction flow"]),
        (["--prediction", "flow", "--shift", "0"], ["--shift", "more than 0"]),
        (["--prediction", "flow", "--shift", "nan"], ["--shift", "nan"]),
    ],
)
def test_what_cannot_be_is_one_clear_error(gen: Sdxl, flags: list[str], said: list[str]) -> None:
    result = gen("a cat", *flags, "--dry-run")
    assert result.code == 2
    assert all(text in " ".join(result.err.split()) for text in said), result.err


def test_broken_markers_are_one_clear_error(gen: Sdxl, sdxl: Sdxl, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    save_file(tiny_tensors() | {"edm_mean": torch.zeros(4), "edm_std": torch.zeros(4)}, path)
    for result in (gen("a cat", "--model", path), sdxl("inspect", path)):
        assert result.code == 4
        assert "marker edm_mean and edm_std is" in " ".join(result.err.split())


def test_inspect_says_what_it_predicts_and_why(sdxl: Sdxl, tmp_path: Path) -> None:
    path = marked(tmp_path, "edm")
    out = " ".join(sdxl("inspect", path).out.split())
    assert "an SDXL base" in out
    assert "predicts edm (has edm_mean and edm_std)" in out
    assert "-1.6574 ± 8.4927, 1.886 ± 5.9022" in out
    document = json.loads(sdxl("inspect", marked(tmp_path, "edm_v"), "--json").out)
    assert document["prediction"] == "edm_v"
    assert document["markers"]["sigma_max"] == 100.0
    assert "sigma 0.004 to 100" in " ".join(sdxl("inspect", tmp_path / "marked-edm_v.safetensors").out.split())


def test_a_latent_is_decoded_with_the_statistics_of_its_model(
    gen: Sdxl, sdxl: Sdxl, tmp_path: Path, tiny_folder: Path
) -> None:
    path = marked(tmp_path, "edm")
    drawn = gen("a cat", "--seed", 1, "--steps", 2, "--model", path, "--save-latents", "-o", "cat.png")
    assert drawn.code == 0, drawn.err
    named = ["-p", tiny_folder / "tiny-base.toml", "-m", path, "--device", "cpu"]
    again = sdxl("decode", "cat.latent.safetensors", *named, "-o", "again.png")
    assert again.code == 0, again.err
    with Image.open("cat.png") as one, Image.open("again.png") as other:
        assert one.tobytes() == other.tobytes()
