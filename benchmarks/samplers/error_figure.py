"""Figures of errors for a paper: curves over model calls on two logarithmic axes, and a table as a map of colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdxl_cli.chart import PALETTE
from sdxl_cli.marks import Area, Colour, Dot, Label, Mark, Path, Point
from sdxl_cli.plot import log_ticks

HEIGHT = 780
_TOP, _BOTTOM = 110, HEIGHT - 80
_INK, _SOFT, _GRID, _REST = (33, 37, 41), (108, 117, 125), (233, 236, 239), (206, 212, 218)
_LEFT, _PANEL, _NAMES = 100, 470, 190  # pixels: of the left margin, a panel, the names at its right
_NAME_HEIGHT = 20
_MOST = 1.0  # errors above 100 % are drawn there

_CELL, _CELL_HEIGHT, _ROW_NAMES, _COLUMN_NAMES = 56, 22, 200, 200
_COLD, _WARM, _HOT = (33, 102, 172), (247, 247, 247), (178, 24, 43)


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves with one title: name -> points of (calls, error), the named ones in colour and the rest in grey."""

    title: str
    curves: Mapping[str, Sequence[Point]]
    named: Sequence[str]


def figure_width(panels: int) -> int:
    """Pixels that a figure of so many panels takes."""
    return 80 + (_PANEL + _NAMES) * panels


def error_figure(panels: Sequence[Panel], title: str) -> list[Mark]:
    """One or two panels side by side with one vertical axis.

    A name has one colour in both panels; at most eight names in all.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.named if name in panel.curves))
    colours = dict(zip(names, PALETTE, strict=False))
    points = [point for panel in panels for curve in panel.curves.values() for point in curve]
    fewest = min(calls for calls, _ in points)
    across = fewest, max(2 * fewest, *(calls for calls, _ in points))
    up = min(error for _, error in points) / 1.2, _MOST * 1.1
    marks: list[Mark] = [Label((_LEFT, 36), title, 24, _INK)]
    for number, panel in enumerate(panels):
        left = _LEFT + number * (_PANEL + _NAMES)
        marks += _axes(left, across, up, panel.title, ticked=number == 0)
        marks += _curves(panel, left, across, up, colours)
    return marks


def _at(left: float, across: Point, up: Point, point: Point) -> Point:
    shares = [
        math.log(min(max(value, low), high) / low) / math.log(high / low)
        for value, (low, high) in zip(point, (across, up), strict=True)
    ]
    return left + 12 + shares[0] * (_PANEL - 24), _BOTTOM - shares[1] * (_BOTTOM - _TOP)


def _axes(left: float, across: Point, up: Point, title: str, ticked: bool) -> list[Mark]:
    marks: list[Mark] = [Label((left, _TOP - 24), title, 19, _INK)]
    for tick in log_ticks(up[0], _MOST, 14):
        y = _at(left, across, up, (across[0], tick))[1]
        marks.append(Path([(left, y), (left + _PANEL, y)], _GRID))
        if ticked:
            marks.append(Label((left - 12, y), f"{tick:g}", 17, _SOFT, "end"))
    for calls in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        if across[0] <= calls <= across[1]:
            x = _at(left, across, up, (calls, _MOST))[0]
            marks.append(Path([(x, _BOTTOM), (x, _BOTTOM + 7)], _SOFT))
            marks.append(Label((x, _BOTTOM + 22), str(calls), 17, _SOFT, "middle"))
    marks.append(Path([(left, _TOP), (left, _BOTTOM), (left + _PANEL, _BOTTOM)], _SOFT, 1.5))
    marks.append(Label((left + _PANEL / 2, HEIGHT - 28), "model calls", 18, _SOFT, "middle"))
    if ticked:
        marks.append(Label((18, (_TOP + _BOTTOM) / 2), "relative error", 18, _SOFT, "middle", upright=True))
    return marks


def _curves(panel: Panel, left: float, across: Point, up: Point, colours: Mapping[str, Colour]) -> list[Mark]:
    marks: list[Mark] = []
    ends: list[tuple[float, str]] = []
    coloured = [name for name in panel.named if name in panel.curves]
    for name in [*(name for name in panel.curves if name not in coloured), *coloured]:
        line = [_at(left, across, up, point) for point in sorted(panel.curves[name])]
        if name in coloured:
            marks.append(Path(line, colours[name], 2.5))
            marks += [Dot(at, 4.5, colours[name]) for at in line]
            ends.append((line[-1][1], name))
        else:
            marks.append(Path(line, _REST, 1.2))
    for y, (end, name) in zip(_apart(sorted(end for end, _ in ends)), sorted(ends), strict=True):
        right = _at(left, across, up, max(panel.curves[name]))
        marks.append(Path([(right[0] + 6, end), (left + _PANEL + 8, y)], colours[name], 0.8))
        marks.append(Label((left + _PANEL + 12, y), name, 15, colours[name]))
    return marks


def _apart(heights: Sequence[float]) -> list[float]:
    """Sorted heights moved so that names at them do not overlap, as little as a sweep down and one up do."""
    moved = list(heights)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + _NAME_HEIGHT)
    if moved:
        moved[-1] = min(moved[-1], _BOTTOM)
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - _NAME_HEIGHT)
    return moved


def error_map(errors: Mapping[tuple[str, str], float], title: str) -> tuple[list[Mark], int, int]:
    """Errors by (row, column) as a table on colours, the best rows and columns first: marks, width and height."""
    rows, columns = (_best_first(errors, part) for part in (0, 1))
    low, high = (math.log(pick(min(error, _MOST) for error in errors.values())) for pick in (min, max))
    spread = high - low or 1.0
    top, left = 60 + _COLUMN_NAMES, _ROW_NAMES + 20
    marks: list[Mark] = [Label((20, 32), title, 22, _INK)]
    for i, row in enumerate(rows):
        y = top + (i + 0.5) * _CELL_HEIGHT
        marks.append(Label((left - 10, y), row, 15, _INK, "end"))
        for j, column in enumerate(columns):
            error = errors.get((row, column))
            if error is not None:
                marks += _cell(left + j * _CELL, y, error, (math.log(min(error, _MOST)) - low) / spread)
    for j, column in enumerate(columns):
        marks.append(
            Label((left + (j + 0.5) * _CELL, top - _COLUMN_NAMES / 2), column, 15, _INK, "middle", upright=True)
        )
    return marks, left + len(columns) * _CELL + 20, top + len(rows) * _CELL_HEIGHT + 20


def _best_first(errors: Mapping[tuple[str, str], float], part: int) -> list[str]:
    """Names of the rows (0) or columns (1) in the order of their median error."""
    values: dict[str, list[float]] = {}
    for key, error in errors.items():
        values.setdefault(key[part], []).append(error)
    return sorted(values, key=lambda name: sorted(values[name])[len(values[name]) // 2])


def _cell(x: float, y: float, error: float, share: float) -> list[Mark]:
    ends, part = ((_COLD, _WARM), share * 2) if share < 0.5 else ((_WARM, _HOT), share * 2 - 1)
    colour = tuple(round(a + part * (b - a)) for a, b in zip(*ends, strict=True))
    half = _CELL_HEIGHT / 2
    corners = [(x, y - half), (x + _CELL, y - half), (x + _CELL, y + half), (x, y + half)]
    ink = (255, 255, 255) if abs(share - 0.5) > 0.35 else _INK
    number = Label((x + _CELL / 2, y), percent(error), 13, ink, "middle")
    return [Area(corners, (colour[0], colour[1], colour[2])), number]


def percent(error: float) -> str:
    """An error with two digits, in percent."""
    value = 100 * error
    return f"{value:.0f}" if value >= 9.95 else f"{value:.{1 if value >= 0.995 else 2 if value >= 0.0995 else 3}f}"
