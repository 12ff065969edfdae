"""`sdxl pull` against a hub on this machine, behind HF_ENDPOINT."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_cli import Sdxl
from support_hub import Hub, running
from support_tiny import tiny_config, write_preset

from sdxl_core.config import ModelFile

CONTENT = bytes(range(256)) * 8000
REPO = "someone/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    file = ModelFile(name="tiny.safetensors", repo=REPO, bytes=len(CONTENT), sha256=sha256)
    write_preset(Path("tiny.toml"), tiny_config().model_copy(update={"file": file}))
    monkeypatch.setenv("SDXL_MODELS", str(tmp_path / "models"))
    with running(Hub(files={f"{REPO}/tiny.safetensors": CONTENT}, etags={f"{REPO}/tiny.safetensors": sha256})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_a_file_is_fetched_once_and_checked(sdxl: Sdxl, hub: Hub, tmp_path: Path) -> None:
    result = sdxl("pull", "./tiny.toml")
    assert (result.code, result.paths) == (0, [tmp_path / "models" / "tiny.safetensors"])
    assert result.paths[0].read_bytes() == CONTENT
    assert "fetching tiny.safetensors: 2.05 MB in " in result.err
    fetched = len(hub.gets())
    assert sdxl("pull", "./tiny.toml", "-q").paths == result.paths
    assert len(hub.gets()) == fetched


def test_a_download_that_breaks_off_goes_on(sdxl: Sdxl, hub: Hub, tmp_path: Path) -> None:
    hub.break_after = [500_000] * 3
    assert sdxl("pull", "./tiny.toml").code == 0
    assert (tmp_path / "models" / "tiny.safetensors").read_bytes() == CONTENT
    assert any(wanted and wanted != "bytes=0-" for wanted in hub.gets())


def test_the_wrong_file_is_refused(sdxl: Sdxl, hub: Hub, tmp_path: Path) -> None:
    hub.files[f"{REPO}/tiny.safetensors"] = CONTENT[:-1] + b"x"
    result = sdxl("pull", "./tiny.toml")
    assert (result.code, result.out) == (4, "")
    assert "is not the published file: its sha256 is" in result.err
    assert not (tmp_path / "models" / "tiny.safetensors").exists()


def test_what_cannot_be_fetched(sdxl: Sdxl, hub: Hub) -> None:
    result = sdxl("pull", "nothing")
    assert result.code == 2
    assert "no preset is named" in result.err
    assert hub.requests == []


def test_what_lies_here_and_nowhere_else_needs_no_fetching(sdxl: Sdxl, hub: Hub, tmp_path: Path) -> None:
    write_preset(Path("own.toml"), tiny_config().model_copy(update={"file": ModelFile(name="own.safetensors")}))
    missing = sdxl("pull", "./own.toml")
    assert (missing.code, missing.out) == (4, "")
    assert "own.safetensors: no such model file" in missing.err
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own.safetensors").touch()
    assert sdxl("pull", "./own.toml").paths == [tmp_path / "models" / "own.safetensors"]
    assert hub.requests == []


def test_ctrl_c_keeps_what_was_fetched(sdxl: Sdxl, hub: Hub, tmp_path: Path) -> None:
    hub.break_after = [500_000, *[0] * 20]
    part = tmp_path / "models" / "tiny.safetensors.part"

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    result = sdxl("pull", "./tiny.toml")
    stopper.join()
    assert result.code == 130
    assert "it goes on where it broke off" in result.err
    assert part.stat().st_size > 0
    hub.break_after = []
    assert sdxl("pull", "./tiny.toml").code == 0
