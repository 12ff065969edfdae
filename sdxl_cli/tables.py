"""Tables: drawn by rich on a terminal, aligned plain text in a pipe."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sdxl_cli.console import Console, safe

Cells = Sequence[str]

_PLAIN_WIDTH = 40  # a longer cell pushes the rest of its line, not every line


def print_table(
    console: Console, columns: Sequence[tuple[str, Literal["left", "right"]]], rows: Sequence[Cells], title: str = ""
) -> None:
    """Print a table.

    Args:
        console: its data stream takes the table.
        columns: heading and alignment of each.
        rows: one text a column; no markup is read from it.
        title: above the table, on a terminal only.
    """
    clean = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_drawn(columns, clean, title)
        return
    headed = [[name for name, _ in columns], *clean]
    widths = [min(max(len(row[i]) for row in headed), _PLAIN_WIDTH) for i in range(len(columns))]
    for row in headed:
        cells = [
            cell.rjust(width) if align == "right" else cell.ljust(width)
            for cell, width, (_, align) in zip(row, widths, columns, strict=True)
        ]
        console.data("  ".join(cells).rstrip())


def print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns; long values wrap beside their name on a terminal."""
    if sys.stdout.isatty():
        _print_grid(pairs)
        return
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        console.data(f"{name.ljust(width)}  {safe(value)}".rstrip())


def _print_drawn(columns: Sequence[tuple[str, Literal["left", "right"]]], rows: Sequence[Cells], title: str) -> None:
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, title=Text(title, style="bold") if title else None, title_justify="left", pad_edge=False
    )
    for name, align in columns:
        table.add_column(name, justify=align, overflow="fold", style="cyan" if name == columns[0][0] else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    RichConsole(highlight=False, emoji=False).print(table)


def _print_grid(pairs: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), Text(safe(value)))
    RichConsole(highlight=False, emoji=False).print(grid)


def with_options(table: Mapping[str, Any]) -> str:
    """A choice by its name and the options that are set: `euler, eta 0.5`; nothing for a table without a name."""
    return ", ".join([str(table["name"]), *_options(table)]) if "name" in table else ""


def _options(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} {_word(value)}".rstrip() for key, value in table.items() if key != "name" and value is not None]


def _word(value: object) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(_options(value))})" if value else ""
    if isinstance(value, list | tuple):
        return "+".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
