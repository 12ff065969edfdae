from pathlib import Path

import pytest

from sdxl_core.checkpoints.find import default_models_folder, find_file, list_files, search_folders
from sdxl_core.errors import CheckpointError


def put(path: Path, size: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A models folder, a ComfyUI root and an A1111 `models` folder; all have a few files."""
    put(tmp_path / "own" / "sd_xl_base_1.0.safetensors")
    put(tmp_path / "own" / "notes.txt")
    put(tmp_path / "own" / ".hidden.safetensors")
    put(tmp_path / "own" / "half.safetensors.part")
    put(tmp_path / "comfy" / "models" / "checkpoints" / "SDXL" / "dream.safetensors", 7)
    put(tmp_path / "comfy" / "models" / "vae" / "sdxl_vae.safetensors")
    put(tmp_path / "comfy" / "models" / "loras" / "style.safetensors")
    put(tmp_path / "a1111" / "Stable-diffusion" / "sd_xl_base_1.0.safetensors", 9)
    put(tmp_path / "a1111" / "VAE" / "other_vae.safetensors")
    return [tmp_path / "own", tmp_path / "comfy", tmp_path / "a1111", tmp_path / "none"]


def test_lists_every_model_once_and_the_first_folder_wins(folders: list[Path]) -> None:
    listed = {file.name: file.bytes for file in list_files(folders)}
    assert listed["sd_xl_base_1.0.safetensors"] == 3
    assert listed["SDXL/dream.safetensors"] == 7
    assert {"sdxl_vae.safetensors", "other_vae.safetensors"} <= listed.keys()
    assert not any("hidden" in name or "notes" in name or ".part" in name or "style" in name for name in listed)


def test_looks_where_comfyui_and_a1111_keep_their_files(folders: list[Path], tmp_path: Path) -> None:
    found = search_folders(folders)
    assert found == [
        tmp_path / "own",
        tmp_path / "comfy",
        tmp_path / "comfy" / "models" / "checkpoints",
        tmp_path / "comfy" / "models" / "vae",
        tmp_path / "a1111",
        tmp_path / "a1111" / "Stable-diffusion",
        tmp_path / "a1111" / "VAE",
    ]


@pytest.mark.parametrize("name", ["dream", "dream.safetensors", "SDXL/dream", "SDXL/dream.safetensors"])
def test_finds_a_file_by_its_name(folders: list[Path], tmp_path: Path, name: str) -> None:
    assert find_file(name, folders) == tmp_path / "comfy" / "models" / "checkpoints" / "SDXL" / "dream.safetensors"


def test_a_path_is_taken_as_it_stands(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "here" / "my.safetensors")
    assert find_file(path, folders) == path
    monkeypatch.chdir(path.parent)
    assert find_file("my.safetensors", []) == Path("my.safetensors")
    assert find_file("./my.safetensors", []) == Path("my.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_file("~/here/my.safetensors", []) == path


def test_what_is_missing_is_said_with_a_near_name_or_the_folders(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="dreem: no such model file") as caught:
        find_file("dreem", folders)
    assert caught.value.message.endswith("; did you mean dream?")
    with pytest.raises(CheckpointError) as caught:
        find_file("zzz", folders)
    assert str(folders[0]) in (caught.value.hint or "")
    with pytest.raises(CheckpointError) as caught:
        find_file("zzz", folders, hint="sdxl pull zzz")
    assert caught.value.hint == "sdxl pull zzz"
    with pytest.raises(CheckpointError, match="no such file"):
        find_file(tmp_path / "no.safetensors", folders)
    with pytest.raises(CheckpointError):
        find_file("a\0b", folders)
    with pytest.raises(CheckpointError):
        find_file("x" * 5000, folders)


def test_the_default_folder_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_models_folder() == tmp_path / "sdxl" / "models"
