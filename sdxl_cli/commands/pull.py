"""`sdxl pull`: published model files from the Hugging Face hub."""

import os
from typing import Annotated

import typer

from sdxl_cli.boundary import Stopped
from sdxl_cli.completion import complete_preset
from sdxl_cli.console import Console
from sdxl_cli.options import Quiet

EPILOG = """
[bold]Examples[/bold]
  sdxl pull sdxl-base-1.0
  SDXL_MODELS=/data/models sdxl pull sdxl-base-1.0 sdxl-refiner-1.0
"""

Names = Annotated[
    list[str],
    typer.Argument(metavar="PRESET", help="Presets whose model files to fetch.", autocompletion=complete_preset),
]


def pull(presets: Names, quiet: Quiet = False) -> None:
    """Fetch the model file of a preset, check it, print its path.

    A download that broke off goes on where it stopped; a file that is there and right is left alone.
    Files go to the folder that SDXL_MODELS names, else to ~/.local/share/sdxl/models.
    """
    from sdxl_cli.places import hash_cache, models_folder, models_folders
    from sdxl_cli.reporters import open_view
    from sdxl_core.checkpoints.find import find_file
    from sdxl_core.checkpoints.pull import pull_file
    from sdxl_core.presets import load_preset

    console = Console(quiet=quiet)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    files = [load_preset(name).model.file for name in presets]
    try:
        with open_view(console) as view:
            for file in files:
                if file.repo is None:  # nothing to fetch: it is here, as micro is, or its owner must bring it
                    path = find_file(file.name, models_folders())
                else:
                    path = pull_file(file, models_folder(), endpoint=endpoint, hash_cache=hash_cache(), reporter=view)
                with view.hidden():
                    console.data(str(path))
    except Stopped as stop:
        stop.message += ": run the command again, it goes on where it broke off"
        raise
