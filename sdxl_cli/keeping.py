"""The latents of pictures: saved where that is asked for, and those of lost pictures kept in any case."""

import contextlib
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sdxl_cli.jobs import LATENT_SUFFIX, Job
from sdxl_core.errors import OutputError, SdxlError
from sdxl_core.naming import Names
from sdxl_core.output import write_whole


@dataclass(frozen=True, slots=True)
class Latents:
    """What becomes of the latents of a run.

    Args:
        names: of its pictures.
        saved: each lies beside its picture, before the picture is made.
        overwrite: replace older ones.
    """

    names: Names
    saved: bool
    overwrite: bool

    def save(self, latent: bytes, job: Job) -> Job:
        """Write one beside where its picture goes.

        Returns:
            The job under the name that was free for both.

        Raises:
            OutputError: it cannot be written there, and says where it is kept.
        """
        taken = any(path.exists() for path in (job.path, beside(job.path)))
        if taken and not self.overwrite and self.names.destination.template.has_fields:
            job = replace(job, path=self.names.next(job.fields))
        try:
            write_whole(beside(job.path), latent, overwrite=self.overwrite, within=self.names.destination.directory)
        except OutputError as error:
            self.keep(latent, job, error)
            raise
        return job

    def tell(self, latent: Callable[[], bytes], job: Job, error: SdxlError) -> None:
        """Have the error of a lost picture say where its latent lies: the one that is saved, else one kept now."""
        if self.saved:
            tell_of_latent(error, beside(job.path))
        else:
            self.keep(latent(), job, error)

    def keep(self, latent: bytes, job: Job, error: SdxlError) -> None:
        """Keep what a picture can be made of that is not there for this error."""
        keep_latent(latent, job.path, error, overwrite=self.overwrite, within=self.names.destination.directory)


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
