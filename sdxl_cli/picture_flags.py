"""The flags of commands that draw from pictures."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sdxl_cli.flags import WHAT, DrawFlags, value
from sdxl_cli.options import flag

START, PART = "Where it starts", "What is repainted"


class Resize(StrEnum):
    """How a picture comes to the size that is drawn."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


class EncodingName(StrEnum):
    """Which latent of a picture is taken; see `sdxl_core.config.Encoding`."""

    mode = "mode"
    sample = "sample"


@dataclass(frozen=True, slots=True)
class Img2ImgFlags(DrawFlags):
    """Everything that `sdxl img2img` can be told; None means that the preset decides."""

    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE... [PROMPT]",
            help="Pictures or patterns such as 'in/*.jpg', then the prompt; without one, each picture's recorded one.",
        ),
    ] = None
    prompts: Annotated[
        list[str] | None,
        value("--prompt", metavar="TEXT", help="The prompt; all arguments are pictures then. Repeatable.", panel=WHAT),
    ] = None
    strength: Annotated[
        float | None,
        value(
            "--strength",
            metavar="S",
            help="Share of the steps that is walked, above 0 to 1; 0.6, or 1 with a mask, --pad or an editing model.",
            panel=START,
        ),
    ] = None
    steps_exact: Annotated[
        bool, flag("--steps-exact", help="Walk --steps steps, of a schedule longer by as much.", panel=START)
    ] = False
    resize: Annotated[
        Resize | None,
        typer.Option("--resize", help="How it comes to another size; crop if not given.", rich_help_panel=START),
    ] = None
    encoding: Annotated[
        EncodingName | None,
        typer.Option(
            "--encoding",
            help="Take a picture's most likely latent, or draw one from its seed; mode if not given.",
            rich_help_panel=START,
        ),
    ] = None
    background: Annotated[
        str | None,
        value(
            "--background", metavar="COLOR", help="Shows through what is transparent; white if not given.", panel=START
        ),
    ] = None
    image_guidance: Annotated[
        float | None,
        value(
            "--image-guidance",
            metavar="SCALE",
            help="How far an editing model keeps to the picture; 1.5 if not given.",
            panel=START,
        ),
    ] = None
    mask: Annotated[
        Path | None,
        value(
            "--mask",
            metavar="FILE",
            help="White is repainted, black stays to the byte, grey is repainted in that share of the steps.",
            panel=PART,
        ),
    ] = None
    mask_invert: Annotated[bool, flag("--mask-invert", help="Repaint what is black.", panel=PART)] = False
    mask_grow: Annotated[
        int | None, value("--mask-grow", metavar="PX", help="Widen what is repainted by PX pixels.", panel=PART)
    ] = None
    mask_blur: Annotated[
        int | None,
        value(
            "--mask-blur",
            metavar="PX",
            help="Mix old and new over PX pixels inside the mask's edge; 4 if not given.",
            panel=PART,
        ),
    ] = None
    only_masked: Annotated[
        bool,
        flag("--only-masked", help="Draw the masked part alone at full size and put it back.", panel=PART),
    ] = False
    mask_padding: Annotated[
        int | None,
        value(
            "--mask-padding",
            metavar="PX",
            help="Picture around the masked part that --only-masked sees; 32 if not given.",
            panel=PART,
        ),
    ] = None
    pad: Annotated[
        str | None,
        value("--pad", metavar="L,T,R,B", help="Add and paint so many pixels left, top, right, bottom.", panel=PART),
    ] = None


@dataclass(frozen=True, slots=True)
class RefineFlags(Img2ImgFlags):
    """Everything that `sdxl refine` can be told."""

    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="Pictures and saved latents, or patterns such as 'in/*.png'."),
    ] = None
    prompts: Annotated[
        list[str] | None,
        value("--prompt", metavar="TEXT", help="What they show; else what each one's record says.", panel=WHAT),
    ] = None
    strength: Annotated[
        float | None,
        value(
            "--strength",
            metavar="S",
            help="Share of the steps that is walked, above 0 to 1; 0.15 if not given.",
            panel=START,
        ),
    ] = None
