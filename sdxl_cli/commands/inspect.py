"""`sdxl inspect`: what a model file, a picture or a latent says about itself."""

import os
import shlex
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from sdxl_cli.boundary import SOME_FAILED
from sdxl_cli.completion import complete_model
from sdxl_cli.console import Console, print_error
from sdxl_cli.options import Json, flag
from sdxl_core.errors import CheckpointError, SdxlError, UsageError

EPILOG = """
[bold]Examples[/bold]
  sdxl inspect sd_xl_base_1.0.safetensors
  sdxl inspect outputs/00001-42-a-cat.png
  sdxl inspect *.safetensors --json
"""

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="Model files, pictures or latents.", autocompletion=complete_model),
]
Hash = Annotated[bool, flag("--hash", help="Compute the sha256 too; reads the whole file once.")]
Tensors = Annotated[bool, flag("--tensors", help="List every tensor with its dtype and shape.")]
Raw = Annotated[bool, flag("--raw", help="Print a picture's parameters text as it stands, and nothing else.")]


def inspect(
    files: Files, hashed: Hash = False, tensors: Tensors = False, raw: Raw = False, as_json: Json = False
) -> None:
    """Say what models, pictures and latents are, from their headers.

    A name without a path is looked for in the models folders too.
    """
    console = Console()
    failures, shown = [], False
    for file in files:
        try:
            if shown and not as_json and not raw:
                console.data("")
            _inspect(console, file, hashed, tensors, raw, as_json)
            shown = True
        except SdxlError as error:
            if len(files) == 1:
                raise
            print_error(error.message, error.hint)
            failures.append(error)
    if failures:
        raise typer.Exit(SOME_FAILED if len(failures) < len(files) else failures[0].exit_code)


def _inspect(console: Console, file: str, hashed: bool, tensors: bool, raw: bool, as_json: bool) -> None:
    from sdxl_core.picture_files import picture_format

    path = _find(file)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder", hint=f"give its files: sdxl inspect {shlex.quote(str(path))}/*")
    if picture_format(_first_bytes(path)) is not None or _called_a_picture(path):
        from sdxl_cli.describe_picture import describe_picture

        describe_picture(console, path, hashed, raw, as_json)
    elif raw:
        raise UsageError(f"{path} is no picture, and only pictures have a parameters text")
    else:
        from sdxl_cli.describe_model import describe_model

        describe_model(console, path, hashed, tensors, as_json)


def _find(file: str) -> Path:
    """A model is looked for in the models folders too; what is called like a picture lies where its name says.

    Raises:
        PictureError: no such picture.
        CheckpointError: no such model or latent.
    """
    from sdxl_cli.places import models_folders
    from sdxl_core.checkpoints.find import find_file
    from sdxl_core.picture_files import PictureError
    from sdxl_core.unknown import suggestion

    path = Path(file).expanduser()
    if not _called_a_picture(path) or os.path.lexists(path):
        return find_file(file, models_folders())
    folder = path.parent
    if not folder.is_dir():
        raise PictureError(f"{path}: no such file, for there is no folder {folder}")
    beside = [name for name in os.listdir(folder) if name.endswith(path.suffix)]
    raise PictureError(f"{path}: no such file{suggestion(path.name, beside)}", hint=f"looked in {folder.resolve()}")


def _called_a_picture(path: Path) -> bool:
    from sdxl_core.naming import FORMATS, OTHER_PICTURES

    return path.suffix.lower() in {*chain(*FORMATS.values()), *OTHER_PICTURES}


def _first_bytes(path: Path) -> bytes:
    """The start of a regular file; nothing of anything else, which the reader of headers will refuse."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(12)
    except OSError:
        return b""
