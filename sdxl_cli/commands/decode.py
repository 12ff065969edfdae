"""`sdxl decode`: pictures from saved latents."""

from dataclasses import dataclass
from typing import Annotated

import typer

from sdxl_cli.completion import complete_model, complete_preset
from sdxl_cli.console import Console
from sdxl_cli.flags import HOW, OUTPUT, SHOW, WHERE, DecodingName, Format, takes, value
from sdxl_cli.options import flag

EPILOG = """
[bold]Examples[/bold]
  sdxl decode outputs/00001-7-a-cat.latent.safetensors
  sdxl decode outputs/*.latent.safetensors -o 'again/{seed}-{slug}.png'
  sdxl decode cat.latent.safetensors --vae sdxl_vae.safetensors -o cat.jpg
  sdxl decode large.latent.safetensors --decoding pieces
"""


@dataclass(frozen=True, slots=True)
class DecodeFlags:
    """Everything that `sdxl decode` can be told."""

    latents: Annotated[list[str], typer.Argument(metavar="LATENT", help="Files that --save-latents has written.")]
    preset: Annotated[
        str | None,
        value("--preset", "-p", metavar="NAME", help="The model that made them.", panel=HOW, complete=complete_preset),
    ] = None
    model: Annotated[
        str | None,
        value("--model", "-m", metavar="FILE", help="Its file.", panel=HOW, complete=complete_model),
    ] = None
    vae: Annotated[
        str | None,
        value("--vae", metavar="FILE", help="Take the autoencoder from this file.", panel=HOW, complete=complete_model),
    ] = None
    decoding: Annotated[
        DecodingName | None,
        typer.Option(
            "--decoding",
            help="Pieces are the same in little memory, tiles are blended; else as the latent says.",
            rich_help_panel=WHERE,
        ),
    ] = None
    device: Annotated[str, value("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", panel=WHERE)] = "auto"
    dtype: Annotated[
        str, value("--dtype", metavar="NAME", help="auto (as the latent says), fp32, fp16 or bf16.", panel=WHERE)
    ] = "auto"
    output: Annotated[
        str | None,
        value(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder, file name, or template such as 'x/{seed}-{slug}.png'; else beside the latent.",
            panel=OUTPUT,
        ),
    ] = None
    format: Annotated[
        Format | None, typer.Option("--format", help="By the name if not given, else png.", rich_help_panel=OUTPUT)
    ] = None
    overwrite: Annotated[bool, flag("--overwrite", help="Replace files that exist.", panel=OUTPUT)] = False
    no_metadata: Annotated[
        bool, flag("--no-metadata", help="Write nothing into the picture but its pixels.", panel=OUTPUT)
    ] = False
    as_json: Annotated[bool, flag("--json", help="One JSON object a picture on standard output.", panel=SHOW)] = False
    quiet: Annotated[bool, flag("--quiet", "-q", help="Errors only on standard error.", panel=SHOW)] = False


@takes(DecodeFlags)
def decode(flags: DecodeFlags) -> None:
    """Make the pictures of saved latents and print their paths.

    Only the autoencoder is loaded, once for all latents of one model. The picture is the one that the latent's own run
    would have written, record included.
    """
    from sdxl_cli.finishing_latents import finish_latents

    code = finish_latents(flags, Console(quiet=flags.quiet))
    if code:
        raise typer.Exit(code)
