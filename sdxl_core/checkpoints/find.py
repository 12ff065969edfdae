"""Where model files lie, and which of them a name means. Imports no torch and reads no environment."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdxl_core.errors import CheckpointError
from sdxl_core.unknown import suggestion

SUFFIX = ".safetensors"
_PLACES = ("checkpoints", "Stable-diffusion", "vae", "VAE")
_DEPTH = 3


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A model file that a name can mean.

    Args:
        name: what to ask for: its path inside the folder that was searched, with forward slashes.
        path: where it is.
        bytes: its size.
    """

    name: str
    path: Path
    bytes: int


def default_models_folder() -> Path:
    """Where models lie unless the user says otherwise: `sdxl/models` in the data folder of the platform."""
    import platformdirs  # kept off the start-up path

    return platformdirs.user_data_path("sdxl", appauthor=False) / "models"


def search_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders to look in, in order: each one itself, then the places where ComfyUI and A1111 keep their files.

    Of a folder that was named only its own files count: beside the places lie LoRAs, upscalers and more.

    Args:
        folders: models folders; also the `models` folder of ComfyUI or A1111, or the folder that holds it.
    """
    found: list[Path] = []
    for folder in folders:
        for parent in (folder, folder / "models"):
            places = [parent / place for place in _PLACES]
            found += [place for place in ([folder, *places] if parent == folder else places) if place.is_dir()]
    # On some file systems `vae` and `VAE` are one folder.
    return list({os.path.realpath(place): place for place in reversed(found)}.values())[::-1]


def list_files(folders: Sequence[Path]) -> list[LocalFile]:
    """Every `.safetensors` file in the models folders, in order of the search; of one name, the first found."""
    named: dict[str, LocalFile] = {}
    seen: set[str] = set()
    for place in search_folders(folders):
        for path in _walk(place, 0 if place in folders else _DEPTH):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                name = path.relative_to(place).as_posix()
                named.setdefault(name, LocalFile(name, path, path.stat().st_size))
    return list(named.values())


def find_file(name_or_path: str | Path, folders: Sequence[Path], *, hint: str | None = None) -> Path:
    """The file that a name or a path means.

    A path of a file that is there is taken as it stands; else a name is looked for in the models folders, with or
    without `.safetensors` and subfolder.

    Args:
        name_or_path: what the user gave.
        folders: models folders, the first wins.
        hint: what to do if it is missing; None suggests near names and says where it was looked for.

    Raises:
        CheckpointError: there is no such file, or no name.
    """
    text = os.path.expanduser(name_or_path)
    if not text:
        raise CheckpointError("the name of a model file is empty", hint="perhaps a variable of the shell is not set")
    direct = Path(text)
    if direct.is_absolute() or _exists(direct):
        if _exists(direct):
            return direct
        raise CheckpointError(f"{direct}: no such file", hint=hint)
    wanted = {direct.as_posix(), f"{direct.as_posix()}{SUFFIX}"}
    files = list_files(folders)
    named = [f.path for f in files if f.name in wanted] or [f.path for f in files if f.path.name in wanted]
    if named:
        return named[0]
    near = suggestion(direct.name.removesuffix(SUFFIX), [file.path.stem for file in files]) if hint is None else ""
    looked = ", ".join(str(folder) for folder in folders) or "no models folder"
    raise CheckpointError(f"{name_or_path}: no such model file{near}", hint=hint or f"looked in {looked}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _walk(place: Path, levels: int) -> Iterator[Path]:
    """Model files in a folder and some levels below, in order of name; folders that cannot be read are passed over."""
    for here, below, names in os.walk(place):
        depth = len(Path(here).relative_to(place).parts)
        below[:] = sorted(name for name in below if not name.startswith(".")) if depth < levels else []
        for name in sorted(names):
            path = Path(here) / name
            if name.lower().endswith(SUFFIX) and not name.startswith(".") and path.is_file():
                yield path
