"""Folders that the environment and the platform name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import sdxl_core

if TYPE_CHECKING:
    from sdxl_core.config import ModelConfig
ENVIRONMENT: Mapping[str, str] = {
    "SDXL_MODELS": "models folder: pulled files go there",
    "SDXL_EXTRA_MODELS": f"more folders with models (ComfyUI, A1111), '{os.pathsep}' between",
    "SDXL_DEBUG": "1 shows the traceback of an internal error",
    "NO_COLOR": "1 leaves out colours",
    "HF_ENDPOINT": "address of the hub that 'sdxl pull' asks",
}


def models_folder() -> Path:
    """The user's own models folder; it need not exist."""
    from sdxl_core.checkpoints.find import default_models_folder

    named = os.environ.get("SDXL_MODELS")
    return Path(named).expanduser() if named else default_models_folder()


def models_folders() -> list[Path]:
    """Every folder that model files are looked for in, the user's own first, what came with the package last."""
    extra = [Path(text).expanduser() for text in os.environ.get("SDXL_EXTRA_MODELS", "").split(os.pathsep) if text]
    return [models_folder(), *extra, Path(sdxl_core.__file__).parent / "weights"]


def hash_cache() -> Path:
    """Where hashes of model files are remembered."""
    import platformdirs  # kept off the start-up path

    return platformdirs.user_cache_path("sdxl", appauthor=False) / "hashes"


def pull_hint(model: "ModelConfig") -> str | None:
    """How to get the file of a published model that is not here."""
    return f"fetch it: sdxl pull {model.name}" if model.file.repo else None
