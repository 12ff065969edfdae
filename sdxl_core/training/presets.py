"""Training presets by name or path. Imports no torch."""

from pathlib import Path

from sdxl_core.config import Config
from sdxl_core.errors import PresetError
from sdxl_core.presets import shipped_file
from sdxl_core.training.config import TrainConfig
from sdxl_core.typed_toml import build, read_toml
from sdxl_core.unknown import suggestion


class _File(Config):
    train: TrainConfig


def list_train_presets() -> dict[str, Path]:
    """Name and path of every training preset that comes with the package."""
    return {path.stem: path for path in sorted(shipped_file("train").glob("*.toml"))}


def load_train_preset(name_or_path: str, steps: int | None = None) -> TrainConfig:
    """Read a training preset by name, or from a path (with a slash or ending in `.toml`).

    Args:
        name_or_path: a name of `list_train_presets`, or a file.
        steps: takes the place of the preset's own number.

    Raises:
        PresetError: no such preset, broken TOML, or a key or value that the schema refuses.
    """
    shipped = list_train_presets()
    path = shipped.get(name_or_path)
    if path is None:
        path = Path(name_or_path)
        if "/" not in name_or_path and path.suffix != ".toml":
            raise PresetError(
                f"no training preset is called {name_or_path!r}{suggestion(name_or_path, shipped)}",
                hint="there are " + ", ".join(shipped),
            )
    table = read_toml(path)
    if steps is not None and isinstance(table.get("train"), dict):
        table["train"]["steps"] = steps
    return build(_File, table, lambda _: str(path)).train
