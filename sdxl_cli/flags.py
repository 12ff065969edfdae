"""The flags of commands that draw: one dataclass is both the signature that typer sees and the value passed on."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sdxl_cli.completion import (
    complete_guider,
    complete_handover,
    complete_model,
    complete_prediction,
    complete_preset,
    complete_program,
    complete_sampler,
    complete_schedule,
)
from sdxl_cli.console import Console, plain_warnings
from sdxl_cli.options import flag

T = TypeVar("T")

WHAT, HOW, SIZES, WHERE, OUTPUT, SHOW = "What to draw", "How to draw it", "Sizes", "Where it runs", "Output", "Report"


class DecodingName(StrEnum):
    """Ways to make pictures of latents; see `sdxl_core.config.Decoding`."""

    auto = "auto"
    whole = "whole"
    pieces = "pieces"
    tiles = "tiles"


class Memory(StrEnum):
    """Where the resting one of two models is; auto: as free memory allows."""

    auto = "auto"
    keep = "keep"
    offload = "offload"
    reload = "reload"


class Format(StrEnum):
    """Picture formats."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


def takes(flags: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Let a command have one parameter, whose dataclass fields become the flags that typer sees, its own ones first."""
    own = inspect.get_annotations(flags)

    def wrap(command: Callable[[T], None]) -> Callable[..., None]:
        def called(**values: Any) -> None:
            with plain_warnings(Console(quiet=values.get("quiet", False)).warn):
                command(flags(**values))

        called.__doc__ = command.__doc__
        called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    f.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if f.default is MISSING else f.default,
                    annotation=f.type,
                )
                for f in sorted(fields(flags), key=lambda f: f.name not in own)  # type: ignore[arg-type]
            ]
        )
        return called

    return wrap


def value(*names: str, metavar: str, help: str, panel: str, complete: Any = None) -> Any:
    """A flag with a value."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, autocompletion=complete)


@dataclass(frozen=True, slots=True)
class DrawFlags:
    """What every command that draws can be told; None means that the preset decides."""

    prompts_file: Annotated[
        Path | None,
        value(
            "--prompts", metavar="FILE", help="Read prompts from a file, one a line; # starts a comment.", panel=WHAT
        ),
    ] = None
    negative: Annotated[
        str | None, value("--negative", "-N", metavar="TEXT", help="What to keep away from.", panel=WHAT)
    ] = None
    prompt_2: Annotated[
        str | None, value("--prompt-2", metavar="TEXT", help="Another prompt for the second text encoder.", panel=WHAT)
    ] = None
    negative_2: Annotated[
        str | None, value("--negative-2", metavar="TEXT", help="The same for the negative prompt.", panel=WHAT)
    ] = None
    seed: Annotated[
        int | None,
        value(
            "--seed",
            "-s",
            metavar="N",
            help="Seed of the first picture of each prompt; random if not given.",
            panel=WHAT,
        ),
    ] = None
    count: Annotated[
        int, value("--count", "-n", metavar="N", help="Pictures a prompt; picture i takes seed + i.", panel=WHAT)
    ] = 1
    preset: Annotated[
        str | None,
        value(
            "--preset",
            "-p",
            metavar="NAME",
            help="Model and recipe: a name or a TOML file.",
            panel=HOW,
            complete=complete_preset,
        ),
    ] = None
    model: Annotated[
        str | None,
        value(
            "--model",
            "-m",
            metavar="FILE",
            help="Model file, or its name in a models folder.",
            panel=HOW,
            complete=complete_model,
        ),
    ] = None
    vae: Annotated[
        str | None,
        value("--vae", metavar="FILE", help="Take the autoencoder from this file.", panel=HOW, complete=complete_model),
    ] = None
    steps: Annotated[int | None, value("--steps", metavar="N", help="Steps of the sampler.", panel=HOW)] = None
    guidance: Annotated[
        float | None,
        value("--guidance", "-g", metavar="SCALE", help="Classifier-free guidance; 1 turns it off.", panel=HOW),
    ] = None
    guidance_interval: Annotated[
        str | None,
        value(
            "--guidance-interval",
            metavar="LOW..HIGH",
            help="Guide at these noise levels alone; or step:3..20, or percent:10..80.",
            panel=HOW,
        ),
    ] = None
    guider: Annotated[
        list[str] | None,
        value(
            "--guider",
            metavar="NAME",
            help="Add a way of guidance, such as apg, pag:scale=3 or rescale:phi=0.7; may be repeated.",
            panel=HOW,
            complete=complete_guider,
        ),
    ] = None
    sampler: Annotated[
        str | None,
        value(
            "--sampler",
            metavar="NAME",
            help="A name of 'sdxl samplers list'; options follow as NAME:key=value,...",
            panel=HOW,
            complete=complete_sampler,
        ),
    ] = None
    schedule: Annotated[
        str | None,
        value(
            "--schedule",
            metavar="NAME",
            help="Noise levels by the name of a schedule, such as karras or edm:rho=7; see 'sdxl sigmas list'.",
            panel=HOW,
            complete=complete_schedule,
        ),
    ] = None
    compat: Annotated[
        str | None,
        value(
            "--compat",
            metavar="PROGRAM",
            help="Do as a1111, comfy, diffusers or sgm where programs differ; --dry-run says where.",
            panel=HOW,
            complete=complete_program,
        ),
    ] = None
    prediction: Annotated[
        str | None,
        value(
            "--prediction",
            metavar="NAME",
            help="What the network predicts, where the file does not say: eps, v, v_ztsnr, edm, edm_v, flow.",
            panel=HOW,
            complete=complete_prediction,
        ),
    ] = None
    shift: Annotated[
        float | None, value("--shift", metavar="S", help="Shift of a flow: every noise level times S.", panel=HOW)
    ] = None
    sigmas: Annotated[
        str | None,
        value(
            "--sigmas",
            metavar="LIST",
            help="Noise levels one by one, such as 14.6,7.8,3.5,0; a file of them, or '-' for standard input.",
            panel=HOW,
        ),
    ] = None
    refiner: Annotated[
        bool | None,
        flag("--refiner/--no-refiner", help="Finish with the second model that the preset names.", panel=HOW),
    ] = None
    refine: Annotated[
        str | None,
        value(
            "--refine",
            metavar="MODE",
            help="Where it takes over: share@0.8, share@step=24, share@sigma=0.4, steps@40/50 or sdedit@0.15.",
            panel=HOW,
            complete=complete_handover,
        ),
    ] = None
    refiner_preset: Annotated[
        str | None,
        value("--refiner-preset", metavar="NAME", help="Another second model.", panel=HOW, complete=complete_preset),
    ] = None
    refiner_model: Annotated[
        str | None,
        value("--refiner-model", metavar="FILE", help="Its file.", panel=HOW, complete=complete_model),
    ] = None
    aesthetic_score: Annotated[
        float | None,
        value("--aesthetic-score", metavar="N", help="0 to 10, what a refiner aims at.", panel=HOW),
    ] = None
    negative_aesthetic_score: Annotated[
        float | None,
        value("--negative-score", metavar="N", help="0 to 10, what it keeps away from.", panel=HOW),
    ] = None
    size: Annotated[str | None, value("--size", metavar="WxH", help="Size of the picture in pixels.", panel=SIZES)] = (
        None
    )
    aspect: Annotated[
        str | None,
        value("--aspect", metavar="W:H", help="Shape; takes the nearest size SDXL was trained on.", panel=SIZES),
    ] = None
    original_size: Annotated[
        str | None,
        value("--original-size", metavar="WxH", help="Size the model believes the picture came from.", panel=SIZES),
    ] = None
    crop: Annotated[
        str | None, value("--crop", metavar="TOP,LEFT", help="Crop the model believes was made.", panel=SIZES)
    ] = None
    target_size: Annotated[
        str | None, value("--target-size", metavar="WxH", help="Size the model believes was asked for.", panel=SIZES)
    ] = None
    device: Annotated[str, value("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", panel=WHERE)] = "auto"
    dtype: Annotated[str, value("--dtype", metavar="NAME", help="auto, fp32, fp16 or bf16.", panel=WHERE)] = "auto"
    attention: Annotated[
        str, value("--attention", metavar="NAME", help="auto, or a backend such as sdpa, cudnn, flash.", panel=WHERE)
    ] = "auto"
    passes: Annotated[
        str,
        value(
            "--passes",
            metavar="NAMES",
            help="What is done for speed, the picture the same to rounding (auto,fp8: near it): auto, none, or names.",
            panel=WHERE,
        ),
    ] = "auto"
    decoding: Annotated[
        DecodingName | None,
        typer.Option(
            "--decoding",
            help="How pictures are made of latents: pieces are the same in little memory, tiles are blended.",
            rich_help_panel=WHERE,
        ),
    ] = None
    batch_size: Annotated[
        int,
        value("--batch-size", "-b", metavar="N", help="Pictures sampled together; does not change them.", panel=WHERE),
    ] = 1
    memory: Annotated[
        Memory,
        typer.Option(
            "--memory",
            help="Where the resting one of two models is: on the device, on the host, or in its file.",
            rich_help_panel=WHERE,
        ),
    ] = Memory.auto
    output: Annotated[
        str | None,
        value(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder, file name, or template such as 'x/{seed}-{slug}.png'.",
            panel=OUTPUT,
        ),
    ] = None
    format: Annotated[
        Format | None, typer.Option("--format", help="By the name if not given, else png.", rich_help_panel=OUTPUT)
    ] = None
    overwrite: Annotated[bool, flag("--overwrite", help="Replace files that exist.", panel=OUTPUT)] = False
    save_latents: Annotated[
        bool, flag("--save-latents", help="Write NAME.latent.safetensors beside each picture.", panel=OUTPUT)
    ] = False
    no_metadata: Annotated[
        bool, flag("--no-metadata", help="Write nothing into the picture but its pixels.", panel=OUTPUT)
    ] = False
    dry_run: Annotated[bool, flag("--dry-run", help="Show what would be drawn, and stop.", panel=SHOW)] = False
    print_config: Annotated[bool, flag("--print-config", help="Print the recipe as TOML, and stop.", panel=SHOW)] = (
        False
    )
    as_json: Annotated[bool, flag("--json", help="One JSON object a picture on standard output.", panel=SHOW)] = False
    quiet: Annotated[bool, flag("--quiet", "-q", help="Errors only on standard error.", panel=SHOW)] = False


@dataclass(frozen=True, slots=True)
class GenFlags(DrawFlags):
    """Everything that `sdxl gen` can be told."""

    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to draw; '-' reads prompts from standard input, one a line."),
    ] = None
