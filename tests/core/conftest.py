"""The tiny model as a file and in memory, one a module; what needs no torch is tested without."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sdxl_core.engine import Engine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support_tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> "Engine":
    return _load(checkpoint)


@pytest.fixture
def spoilable(checkpoint: Path) -> "Engine":
    """An engine of one test's own."""
    return _load(checkpoint)


def _load(checkpoint: Path) -> "Engine":
    from support_tiny import tiny_config

    from sdxl_core.engine import load_engine

    return load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32")
