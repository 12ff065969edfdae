"""What every command that draws does with a run: print its recipe, show it, or draw it."""

import typer

from sdxl_cli.boundary import SOME_FAILED
from sdxl_cli.console import Console
from sdxl_cli.flags import DrawFlags
from sdxl_cli.jobs import Run, recipe_table


def run_or_show(run: Run, flags: DrawFlags, console: Console) -> None:
    """Do what the flags ask for; a failing run ends the program with its exit code."""
    code = SOME_FAILED if run.left_out else 0
    if flags.print_config:
        from sdxl_cli.toml_text import to_toml

        console.data(to_toml(recipe_table(run)).rstrip("\n"))
    elif flags.dry_run:
        from sdxl_cli.dry_run import show_run

        show_run(run, flags, console)
    else:
        from sdxl_cli.drawing import draw

        code = draw(run, flags, console)
    if code:
        raise typer.Exit(code)
