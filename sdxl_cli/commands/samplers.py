"""`sdxl samplers`: the samplers there are, and what each takes."""

import math

import typer

from sdxl_cli.console import Console
from sdxl_cli.options import Json
from sdxl_cli.tables import print_table
from sdxl_core.types import Option

app = typer.Typer(no_args_is_help=True, help="List the samplers.")


@app.command(
    "list",
    epilog="""
[bold]Examples[/bold]
  sdxl samplers list
  sdxl samplers list --json
  sdxl gen "a fox" --sampler uni_pc:order=2,solver_type=bh2""",
)
def list_(as_json: Json = False) -> None:
    """List the samplers: order of convergence, model calls a step, whether they add noise, options with defaults."""
    from sdxl_core.diffusion.options import range_text
    from sdxl_core.diffusion.samplers import SAMPLERS

    console = Console()
    if as_json:
        console.json(
            [
                {
                    "name": row.name,
                    "order": row.order,
                    "calls_per_step": row.calls,
                    "stochastic": row.stochastic,
                    "cfg_pp": row.uncond,
                    "options": {
                        # JSON has no infinity: a limit that is not there is null.
                        key: {"default": None if default == math.inf else default, "allowed": allowed}
                        for key, default in row.options.items()
                        for allowed in [range_text(default, row.allowed.get(key))]
                    },
                    "description": row.summary,
                    "source": row.source,
                }
                for row in SAMPLERS.values()
            ],
            indent=2,
        )
        return
    print_table(
        console,
        [
            ("name", "left"),
            ("order", "right"),
            ("calls a step", "right"),
            ("noise", "left"),
            ("options", "left"),
            ("description", "left"),
            ("source", "left"),
        ],
        [
            (
                row.name,
                str(row.order or "-"),
                "varies" if row.calls is None else str(row.calls),
                "yes" if row.stochastic else "no",
                ",".join(_written(key, default) for key, default in row.options.items()) or "-",
                row.summary,
                row.source,
            )
            for row in SAMPLERS.values()
        ],
    )


def _written(key: str, default: Option) -> str:
    """An option as `--sampler NAME:key=value` takes it; the key alone where the default is no limit at all."""
    if isinstance(default, float):
        return key if default == math.inf else f"{key}={default:g}"
    return f"{key}={str(default).lower() if isinstance(default, bool) else default}"
