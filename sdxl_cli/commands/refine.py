"""`sdxl refine`: pictures and saved latents, gone over by a refiner."""

from dataclasses import replace

from sdxl_cli.console import Console
from sdxl_cli.flags import takes
from sdxl_cli.picture_flags import RefineFlags

EPILOG = """
[bold]Examples[/bold]
  sdxl refine outputs/00001-7-a-cat.png
  sdxl refine 'outputs/*.latent.safetensors' --strength 0.2 --aesthetic-score 7
  sdxl refine photo.jpg --prompt "a portrait" --preset sdxl-base-1.0 --strength 0.3
"""


@takes(RefineFlags)
def refine(flags: RefineFlags) -> None:
    """Add noise to FILEs and take it away with a refiner; print the paths of the new pictures.

    A picture's record says its prompt where --prompt does not. Without --preset and --model this is the refiner of the
    model that drew them, SDXL's where no record says one; any other model works too. Without --strength it is the last
    15 % of the steps.
    """
    from sdxl_cli.jobs import resolve_run
    from sdxl_cli.pictures import gather_files, refiner_of
    from sdxl_cli.refiners import refiner_in
    from sdxl_cli.running import run_or_show

    console = Console(quiet=flags.quiet)
    files = gather_files(flags)
    if flags.preset is None:
        flags = replace(flags, preset=refiner_of(files) if flags.model is None else refiner_in(flags.model))
    run_or_show(resolve_run(flags, files.prompts, console, files), flags, console)
