"""`sdxl sigmas`: the noise levels that a run would walk through."""

import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from sdxl_cli.completion import complete_schedule
from sdxl_cli.console import Console
from sdxl_cli.options import Json, flag
from sdxl_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

EPILOG = """
[bold]Examples[/bold]
  sdxl sigmas
  sdxl sigmas --kind edm --rho 7 --steps 20
  sdxl sigmas --kind edm --csv > levels.csv
  sdxl sigmas --png levels.png"""


KindFlag = Annotated[
    str,
    typer.Option(
        "--kind",
        metavar="NAME",
        help="A schedule, such as ddpm, karras or beta:alpha=0.8.",
        autocompletion=complete_schedule,
    ),
]
Steps = Annotated[int, typer.Option(metavar="N", help="Number of steps, 1 to 1000.")]
Rho = Annotated[float | None, typer.Option(metavar="R", help="Bend of the edm levels; 1 is straight, 3 if not given.")]
SigmaMin = Annotated[float | None, typer.Option(metavar="S", help="Lowest edm level, 0.0292 if not given.")]
SigmaMax = Annotated[float | None, typer.Option(metavar="S", help="Highest edm level, 14.6146 if not given.")]
Csv = Annotated[bool, flag("--csv", help="Print comma-separated values.")]
Emit = Annotated[bool, flag("--emit", help="Print the list alone, for 'sdxl gen --sigmas -'.")]
Png = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the levels into a PNG as well.")]
Overwrite = Annotated[bool, flag("--overwrite", help="Replace FILE if it exists.")]
Plot = Annotated[bool | None, flag("--plot/--no-plot", help="Draw under the table; on a terminal if not given.")]


def sigmas(
    kind: KindFlag = "ddpm",
    steps: Steps = 30,
    rho: Rho = None,
    sigma_min: SigmaMin = None,
    sigma_max: SigmaMax = None,
    as_json: Json = False,
    as_csv: Csv = False,
    emit: Emit = False,
    png: Png = None,
    overwrite: Overwrite = False,
    plot: Plot = None,
) -> None:
    """Show the noise levels that a run walks through."""
    if as_json + as_csv + emit > 1:
        raise UsageError("--json, --csv and --emit exclude each other")
    from sdxl_cli.schedules import parse_schedule
    from sdxl_core.config import DenoiserConfig, DiscretizationConfig
    from sdxl_core.diffusion.discretization import legacy_ddpm_table, sigma_to_timestep
    from sdxl_core.diffusion.schedules import check_schedule, resolve_sigmas

    name, options = parse_schedule(kind, "--kind")
    for key, value in (("rho", rho), ("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is not None:
            options[key] = value
    check_schedule(name, options)
    discretization = DiscretizationConfig(name=name, **options)
    levels = resolve_sigmas(discretization, steps, DenoiserConfig())
    table = legacy_ddpm_table().tolist()
    timesteps = [sigma_to_timestep(sigma, table) for sigma in levels[:-1]]
    if png is not None:
        _draw(png, levels, name, overwrite)
    console = Console()
    rows = [(i, sigma, t) for i, (sigma, t) in enumerate(zip(levels, [*timesteps, None], strict=True))]
    if as_json:
        console.json(
            {
                "kind": name,
                "steps": steps,
                "options": options,
                "levels": [{"index": i, "sigma": sigma, "timestep": t} for i, sigma, t in rows],
            },
            indent=2,
        )
    elif emit:
        console.data(",".join(map(_shown, levels)))
    elif as_csv:
        console.data("index,sigma,timestep")
        for i, sigma, t in rows:
            console.data(f"{i},{_shown(sigma)},{'' if t is None else t}")
    else:
        _print_human(console, rows, levels, plot)


def _print_human(
    console: Console, rows: "Sequence[tuple[int, float, int | None]]", levels: "Sequence[float]", plot: bool | None
) -> None:
    from sdxl_cli.plot import braille_plot
    from sdxl_cli.tables import print_table

    print_table(
        console,
        [("index", "right"), ("sigma", "right"), ("timestep", "right")],
        [(str(i), _shown(sigma), "-" if t is None else str(t)) for i, sigma, t in rows],
    )
    if plot is True or (plot is None and sys.stdout.isatty()):
        width = min(get_terminal_size().columns, 100)
        console.data("")
        for line in braille_plot(levels[:-1], max(width, 30), 16):
            console.data(line)


def _shown(sigma: float) -> str:
    """The shortest text that names this float32."""
    import numpy as np

    return "0" if sigma == 0 else np.format_float_positional(np.float32(sigma), trim="-")


def _draw(path: Path, levels: "Sequence[float]", name: str, overwrite: bool) -> None:
    from sdxl_cli.chart import draw_sigmas
    from sdxl_core.output import write_whole

    if path.suffix.lower() != ".png":
        raise UsageError(f"--png {path} does not end in .png")
    write_whole(path, draw_sigmas(levels, f"{name}, {len(levels) - 1} steps"), overwrite=overwrite)
