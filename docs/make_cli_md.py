"""Writes docs/cli.md from the command line itself: `python docs/make_cli_md.py > docs/cli.md`."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from sdxl_cli.app import app
from sdxl_cli.boundary import ALL_FAILED, EXIT_CODES
from sdxl_cli.places import ENVIRONMENT


def document() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    lines = [
        "# The command line",
        "",
        "This page is made from the program by `docs/make_cli_md.py`; a test compares the two.",
        "",
        "Standard output carries the product alone: paths of pictures, one a line, JSON with `--json`, tables. All",
        "else goes to standard error. Bars and colours appear on a terminal only.",
        "",
        "## Exit codes",
        "",
        *_table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()]),
        "",
        ALL_FAILED,
        "",
        "## Environment",
        "",
        *_table(("variable", "meaning"), [(f"`{name}`", meaning) for name, meaning in ENVIRONMENT.items()]),
        "",
    ]
    for name, command in group.commands.items():
        lines += _command(f"sdxl {name}", command)
        for below, inner in getattr(command, "commands", {}).items():
            lines += _command(f"sdxl {name} {below}", inner)
    return "\n".join(lines).rstrip() + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    yield from (f"## {name}", "", command.help.strip(), "", "```", context.get_usage().strip(), "```", "")
    panels: dict[str, list[tuple[str, str]]] = {"": []}  # arguments first, wherever they are declared
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        panel = getattr(parameter, "rich_help_panel", None) or ""
        panels.setdefault(panel, []).append((_names(parameter), _meaning(parameter, context)))
    for panel, rows in panels.items():
        if not rows:
            continue
        yield from (*([f"**{panel}**", ""] if panel else []), *_table(("flag", "meaning"), rows), "")
    if command.epilog:
        examples = re.sub(r"\[/?bold\]", "", command.epilog).strip().splitlines()
        yield from ("```", *(line.strip() for line in examples[1:]), "```", "")


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    value = "" if parameter.is_flag else f" {parameter.metavar or _choices(parameter)}"
    return f"`{', '.join(sorted(names, key=len))}{value}`"


def _choices(parameter: Any) -> str:
    return "\\|".join(str(choice.value) for choice in parameter.type_descriptor.choices)


def _meaning(parameter: Any, context: Any) -> str:
    default = parameter.get_default(context)
    silent = default is None or isinstance(default, bool)
    shown = "" if silent else f" Default: {getattr(default, 'value', default)}."
    return f"{parameter.help}{shown}"


def _table(heads: tuple[str, str], rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f"| {heads[0]} | {heads[1]} |"
    yield "|---|---|"
    yield from (f"| {left} | {right} |" for left, right in rows)


if __name__ == "__main__":
    sys.stdout.write(document())
