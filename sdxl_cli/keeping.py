"""The latents of pictures that cannot be made or written are kept: beside where the picture goes, else elsewhere."""

import contextlib
import shlex
import tempfile
from pathlib import Path

from sdxl_cli.jobs import LATENT_SUFFIX
from sdxl_core.errors import OutputError, SdxlError
from sdxl_core.output import write_whole


def beside(picture: Path) -> Path:
    """Where the latent of a picture lies."""
    return picture.with_suffix(LATENT_SUFFIX)


def keep_latent(latent: bytes, picture: Path, error: SdxlError, *, overwrite: bool, within: Path) -> None:
    """Keep what a picture can be made of, and have the error say where; it stays as it is if there is no room at all.

    Args:
        latent: its file.
        picture: where the picture goes.
        error: why it is not there.
        overwrite: replace an older latent beside it.
        within: the directory that holds all that a run writes; the other place is among temporary files.
    """
    kept: Path | None = beside(picture)
    try:
        write_whole(beside(picture), latent, overwrite=overwrite, within=within)
    except OutputError:
        kept = _among_temporary_files(latent, beside(picture).name)
    if kept is not None:
        tell_of_latent(error, kept)


def _among_temporary_files(latent: bytes, name: str) -> Path | None:
    """In a folder that nobody else may read or write: a latent tells the picture and its prompt."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="sdxl-"))
    except OSError:  # said too where there is no room for any file
        return None
    try:
        write_whole(folder / name, latent)
    except OutputError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return folder / name


def tell_of_latent(error: SdxlError, kept: Path) -> None:
    """Add to an error where the latent lies of a picture that could not be made or written."""
    error.message += f"; its latent is kept in {kept}"
    again = f"'sdxl decode {shlex.quote(str(kept))}' makes the picture of it"
    error.hint = f"{error.hint}; {again}" if error.hint else again
