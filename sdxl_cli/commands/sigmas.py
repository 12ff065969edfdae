"""`sdxl sigmas`: the noise levels that a run would walk through, and every schedule there is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sdxl_cli.completion import (
    complete_prediction,
    complete_preset,
    complete_program,
    complete_sampler,
    complete_schedule,
)
from sdxl_cli.console import Console
from sdxl_cli.flags import takes, value
from sdxl_cli.options import Json, flag
from sdxl_core.errors import UsageError

EPILOG = """
[bold]Examples[/bold]
  sdxl sigmas
  sdxl sigmas list
  sdxl sigmas --kind edm --rho 7 --steps 20
  sdxl sigmas --compare karras,beta,align_your_steps --steps 12 --png levels.png
  sdxl sigmas --kind karras --refine share@0.8
  sdxl sigmas --kind beta --compat a1111 --sampler dpm_2
  sdxl sigmas --kind beta --steps 20 --emit | sdxl gen "a cat" --sigmas -
  sdxl sigmas --betas --csv > betas.csv"""

app = typer.Typer(invoke_without_command=True, help="Show the noise levels that a run walks through.", epilog=EPILOG)

WHICH, CUT, FORM = "Which levels", "Which of them", "Form"


@dataclass(frozen=True, slots=True)
class SigmasFlags:
    """Everything that `sdxl sigmas` can be told; None means that something else decides."""

    context: typer.Context
    kind: Annotated[
        str | None,
        value(
            "--kind",
            "--schedule",
            metavar="NAME",
            help="A schedule, such as karras or beta:alpha=0.8; ddpm if not given.",
            panel=WHICH,
            complete=complete_schedule,
        ),
    ] = None
    compare: Annotated[
        str | None, value("--compare", metavar="A,B,...", help="Several schedules side by side.", panel=WHICH)
    ] = None
    sigmas: Annotated[
        str | None,
        value(
            "--sigmas",
            metavar="LIST",
            help="Levels one by one, a file of them, or '-' for stdin.",
            panel=WHICH,
        ),
    ] = None
    preset: Annotated[
        str | None,
        value(
            "--preset",
            "-p",
            metavar="NAME",
            help="Schedule, steps and trained levels of a preset.",
            panel=WHICH,
            complete=complete_preset,
        ),
    ] = None
    betas: Annotated[
        bool, flag("--betas", help="The betas of training and what they leave of the signal.", panel=WHICH)
    ] = False
    steps: Annotated[
        int | None, value("--steps", metavar="N", help="Number of steps, 1 to 1000; 30 if not given.", panel=WHICH)
    ] = None
    rho: Annotated[float | None, value("--rho", metavar="R", help="Short for NAME:rho=R.", panel=WHICH)] = None
    sigma_min: Annotated[
        float | None, value("--sigma-min", metavar="S", help="Short for NAME:sigma_min=S.", panel=WHICH)
    ] = None
    sigma_max: Annotated[
        float | None, value("--sigma-max", metavar="S", help="Short for NAME:sigma_max=S.", panel=WHICH)
    ] = None
    prediction: Annotated[
        str | None,
        value(
            "--prediction",
            metavar="NAME",
            help="What the network predicts, which decides its trained levels; eps if not given.",
            panel=WHICH,
            complete=complete_prediction,
        ),
    ] = None
    shift: Annotated[
        float | None, value("--shift", metavar="S", help="Shift of a flow: every noise level times S.", panel=WHICH)
    ] = None
    compat: Annotated[
        str | None,
        value(
            "--compat",
            metavar="PROGRAM",
            help="As a1111, comfy, diffusers or sgm makes and takes them.",
            panel=WHICH,
            complete=complete_program,
        ),
    ] = None
    sampler: Annotated[
        str | None,
        value(
            "--sampler",
            metavar="NAME",
            help="With --compat: the sampler that walks them; euler if not given.",
            panel=WHICH,
            complete=complete_sampler,
        ),
    ] = None
    strength: Annotated[
        float | None,
        value("--strength", metavar="S", help="The last levels, as a picture of that strength takes them.", panel=CUT),
    ] = None
    refine: Annotated[
        str | None,
        value("--refine", metavar="MODE", help="Split between base and refiner, such as share@0.8.", panel=CUT),
    ] = None
    plot: Annotated[
        bool | None,
        flag("--plot/--no-plot", help="Draw under the table; on a terminal if not given.", panel=FORM),
    ] = None
    as_json: Annotated[bool, flag("--json", help="Print JSON.", panel=FORM)] = False
    as_csv: Annotated[bool, flag("--csv", help="Print comma-separated values.", panel=FORM)] = False
    emit: Annotated[bool, flag("--emit", help="Print the levels alone, for 'sdxl gen --sigmas -'.", panel=FORM)] = False
    png: Annotated[
        Path | None, value("--png", metavar="FILE", help="Draw a figure into a PNG as well.", panel=FORM)
    ] = None
    svg: Annotated[
        Path | None, value("--svg", metavar="FILE", help="Draw a figure into an SVG as well.", panel=FORM)
    ] = None
    overwrite: Annotated[bool, flag("--overwrite", help="Replace FILE if it exists.", panel=FORM)] = False


@app.callback()
@takes(SigmasFlags)
def sigmas(flags: SigmasFlags) -> None:
    """Show the noise levels that a run walks through."""
    if flags.context.invoked_subcommand is not None:
        if flags != SigmasFlags(flags.context):
            raise UsageError("'sdxl sigmas list' takes no flags before its name", hint="write sdxl sigmas list")
        return
    _check(flags)
    from sdxl_cli.show_sigmas import show_betas, show_levels

    show = show_betas if flags.betas else show_levels
    show(flags, Console())


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the schedules, each in one line: its levels of 16 steps, and what it is."""
    from sdxl_cli.show_sigmas import show_schedules

    show_schedules(as_json, Console())


def _check(flags: SigmasFlags) -> None:
    """Refuse flags that say two things, or one that has no meaning beside another.

    Raises:
        UsageError: names both.
    """
    given = {
        "--betas": flags.betas,
        "--kind": flags.kind is not None,
        "--compare": flags.compare is not None,
        "--sigmas": flags.sigmas is not None,
        "--compat": flags.compat is not None,
        "--strength": flags.strength is not None,
        "--refine": flags.refine is not None,
        "--json": flags.as_json,
        "--csv": flags.as_csv,
        "--emit": flags.emit,
    }
    for first, *others in (
        ("--betas", "--kind", "--compare", "--sigmas", "--compat", "--strength", "--refine", "--emit"),
        ("--kind", "--compare", "--sigmas"),
        ("--compare", "--sigmas", "--refine", "--emit"),
        ("--strength", "--refine"),
        ("--refine", "--emit"),
        ("--json", "--csv", "--emit"),
        ("--csv", "--emit"),
    ):
        for other in others:
            if given[first] and given[other]:
                raise UsageError(f"{first} and {other} exclude each other")
    if flags.compare is not None or flags.sigmas is not None or flags.betas:
        for name, value in (("--rho", flags.rho), ("--sigma-min", flags.sigma_min), ("--sigma-max", flags.sigma_max)):
            if value is not None:
                raise UsageError(f"{name} belongs to --kind", hint="write options at a name, such as karras:rho=5")
    for path, suffix in ((flags.png, ".png"), (flags.svg, ".svg")):
        if path is not None and path.suffix.lower() != suffix:
            raise UsageError(f"--{suffix[1:]} {path} does not end in {suffix}")
