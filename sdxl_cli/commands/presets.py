"""`sdxl presets`: what there is, and where every value of one comes from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from sdxl_cli.completion import complete_preset
from sdxl_cli.console import Console
from sdxl_cli.options import Json
from sdxl_cli.tables import print_pairs, print_table
from sdxl_core.errors import PresetError

app = typer.Typer(no_args_is_help=True, help="List the presets, or show one value by value.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the presets by name, and whether their model files are here."""
    from sdxl_core.presets import list_presets

    console = Console()
    entries = list_presets()
    files = _model_files(entry.name for entry in entries if entry.kind != "broken")
    if as_json:
        fields = ("name", "kind", "description", "source")
        found = {name: None if path is None else str(path) for name, path in files.items()}
        console.json(
            [
                {k: getattr(e, k) for k in fields} | {"path": str(e.path), "model_file": found.get(e.name)}
                for e in entries
            ],
            indent=2,
        )
        return
    print_table(
        console,
        [("name", "left"), ("kind", "left"), ("from", "left"), ("model file", "left"), ("description", "left")],
        [(e.name, e.kind, e.source, "here" if files.get(e.name) else "missing", e.description) for e in entries],
    )


def _model_files(names: Iterable[str]) -> dict[str, Path | None]:
    """Where the model file of each preset lies; None for one that is missing or whose preset is at fault."""
    from sdxl_cli.places import models_folders
    from sdxl_core.checkpoints.find import list_files
    from sdxl_core.presets import load_preset

    here = {file.path.name: file.path for file in list_files(models_folders())}
    found: dict[str, Path | None] = {}
    for name in names:
        try:
            found[name] = here.get(load_preset(name).model.file.name)
        except PresetError:
            found[name] = None
    return found


@app.command(
    "show",
    epilog="""
[bold]Examples[/bold]
  sdxl presets show micro
  sdxl presets show ./mine.toml --json""",
)
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A preset's name, or a TOML file.", autocompletion=complete_preset)
    ],
    as_json: Json = False,
) -> None:
    """Show each value of a preset and where it came from."""
    from sdxl_core.presets import load_preset

    console = Console()
    preset = load_preset(name)
    if as_json:
        values = {k: {"value": v, "origin": preset.origins[k]} for k, v in preset.values.items()}
        console.json({"name": preset.name, "description": preset.description, "values": values}, indent=2)
        return
    if preset.description:
        print_pairs(console, [(preset.name, preset.description)])
        console.data("")
    rows = [(key, _shown(value), preset.origins[key]) for key, value in preset.values.items()]
    print_table(console, [("key", "left"), ("value", "left"), ("from", "left")], rows)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if value == {}:
        return "on"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return str(value)
