"""The real command, in this process, beside a tiny model; nothing of the user's own folders is seen or touched."""

from pathlib import Path

import pytest
from support_cli import Result, Sdxl
from support_tiny import tiny_config, write_preset, write_tiny_checkpoint

from sdxl_cli.boundary import run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a base and a refiner of SDXL's shape, and presets for them."""
    folder = tmp_path_factory.mktemp("tiny")
    for kind in ("base", "refiner"):
        config = tiny_config(kind)
        write_tiny_checkpoint(folder / config.file.name, kind)
        write_preset(folder / f"tiny-{kind}.toml", config, "[recipe]\nsteps = 3\nguider = {scale = 4.0}\n")
    return folder


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("NO_COLOR", "FORCE_COLOR", "SDXL_EXTRA_MODELS", "SDXL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDXL_MODELS", str(tiny_folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def sdxl(capfd: pytest.CaptureFixture[str]) -> Sdxl:
    """Run one command line; standard output and standard error as a pipe would get them."""

    def call(*argv: object) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in argv])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def gen(sdxl: Sdxl, tiny_folder: Path) -> Sdxl:
    """`sdxl gen` with the tiny base."""
    return lambda *argv: sdxl("gen", "--preset", tiny_folder / "tiny-base.toml", "--device", "cpu", *argv)
