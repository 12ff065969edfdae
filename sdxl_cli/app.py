"""Puts the commands together, nothing else."""

from typing import Annotated

import typer

import sdxl_core
from sdxl_cli.boundary import ALL_FAILED, EXIT_CODES
from sdxl_cli.commands import decode, gen, img2img, inspect, presets, pull, refine, samplers, sigmas, train
from sdxl_cli.console import Console
from sdxl_cli.options import flag
from sdxl_cli.places import ENVIRONMENT

_EPILOG = "\n".join(
    [
        "[bold]Environment[/bold]",
        *(f"  {name:<18} {meaning}" for name, meaning in ENVIRONMENT.items()),
        "",
        "[bold]Exit codes[/bold]",
        *(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()),
        "",
        ALL_FAILED,
    ]
)

app = typer.Typer(
    name="sdxl",
    help="Stable Diffusion XL from the command line: pictures from words, on a GPU or on a plain CPU.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        Console().data(f"sdxl {sdxl_core.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version and exit."),
    ] = False,
    # The boundary takes it out before typer reads the line; it stands here for the help page.
    debug: Annotated[bool, flag("--debug", help="Show the traceback of an internal error.")] = False,
) -> None:
    pass


app.command("gen", epilog=gen.EPILOG)(gen.gen)
app.command("img2img", epilog=img2img.EPILOG)(img2img.img2img)
app.command("refine", epilog=refine.EPILOG)(refine.refine)
app.command("decode", epilog=decode.EPILOG)(decode.decode)
app.command("inspect", epilog=inspect.EPILOG)(inspect.inspect)
app.add_typer(sigmas.app, name="sigmas")
app.add_typer(samplers.app, name="samplers")
app.add_typer(presets.app, name="presets")
app.command("pull", epilog=pull.EPILOG)(pull.pull)
app.command("train", epilog=train.EPILOG)(train.train)
