"""`sdxl presets`."""

import json
from pathlib import Path

import pytest
from support_cli import Sdxl


def test_the_list_has_every_shipped_preset(sdxl: Sdxl) -> None:
    result = sdxl("presets", "list")
    names = [line.split()[0] for line in result.out.splitlines()[1:]]
    assert {"micro", "sdxl-base-1.0", "sdxl-refiner-1.0"} <= set(names)
    entries = json.loads(sdxl("presets", "list", "--json").out)
    assert [entry["name"] for entry in entries] == names
    assert all(entry["model_file"] is None for entry in entries if entry["name"].startswith("sdxl-"))


def test_the_list_says_which_model_files_are_here(sdxl: Sdxl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sd_xl_refiner_1.0.safetensors").touch()
    monkeypatch.setenv("SDXL_MODELS", str(tmp_path / "models"))
    lines = {line.split()[0]: line.split()[3] for line in sdxl("presets", "list").out.splitlines()[1:]}
    assert (lines["sdxl-refiner-1.0"], lines["sdxl-base-1.0"]) == ("here", "missing")


def test_each_value_says_where_it_came_from(sdxl: Sdxl, tmp_path: Path) -> None:
    folder = tmp_path / "XDG_CONFIG_HOME" / "sdxl" / "presets"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('description = "my own"\nbase = "sdxl-base-1.0"\n[recipe]\nsteps = 12\n')
    values = json.loads(sdxl("presets", "show", "mine", "--json").out)["values"]
    assert values["recipe.steps"] == {"value": 12, "origin": "recipe mine"}
    assert values["model.network.model_channels"] == {"value": 320, "origin": "model sdxl-base-1.0"}
    assert values["recipe.sampler.name"]["origin"] == "default"
    shown = sdxl("presets", "show", "mine").out.splitlines()
    assert shown[0].split() == ["mine", "my", "own"]
    assert ["recipe.steps", "12", "recipe", "mine"] in [line.split() for line in shown]
    assert "mine" in sdxl("presets", "list").out


def test_a_broken_preset_is_listed_with_its_fault(sdxl: Sdxl, tmp_path: Path) -> None:
    folder = tmp_path / "XDG_CONFIG_HOME" / "sdxl" / "presets"
    folder.mkdir(parents=True)
    (folder / "bad.toml").write_text("[recipe")
    result = sdxl("presets", "list")
    assert result.code == 0
    assert "broken" in next(line for line in result.out.splitlines() if line.startswith("bad"))


def test_an_unknown_preset_is_an_error_with_a_suggestion(sdxl: Sdxl) -> None:
    result = sdxl("presets", "show", "micra")
    assert (result.code, result.out) == (2, "")
    assert "did you mean micro?" in result.err
