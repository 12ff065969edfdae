"""A line plot in braille dots, with a true logarithmic axis."""

import math
from collections.abc import Sequence
from itertools import pairwise

# Bit of each dot in a braille cell of 2 columns by 4 rows, counted from the top left. Source: Unicode, block U+2800.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LABEL = 8


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values of 1, 2 or 5 times a power of ten between `low` and `high`, at most `most` of them.

    Args:
        low: above 0.
        high: at least `low`.
        most: at least 1.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= most:
            return ticks
    stride = math.ceil(len(ticks) / most)
    return ticks[::stride]


def braille_plot(values: Sequence[float], width: int, height: int) -> list[str]:
    """`values` against their index, joined by lines, the vertical axis logarithmic.

    Args:
        values: at least one, all above 0.
        width: of the whole plot in characters, at least 20.
        height: of the drawing in lines, at least 3; one line of index labels is added.

    Returns:
        The lines, top first.
    """
    columns, rows = (width - _LABEL - 2) * 2, height * 4
    low, high = math.log(min(values)), math.log(max(values))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5

    def row_of(value: float) -> int:
        return round((high - math.log(value)) / (high - low) * (rows - 1))

    last = max(len(values) - 1, 1)
    points = [(round(i / last * (columns - 1)), row_of(v)) for i, v in enumerate(values)]
    cells = [[0] * (columns // 2) for _ in range(height)]
    for x, y in _joined(points):
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    labels = {row_of(t) // 4: f"{t:g}" for t in reversed(log_ticks(math.exp(low), math.exp(high), height // 2 + 1))}
    lines = []
    for row, bits in enumerate(cells):
        label = labels.get(row, "")
        lines.append(f"{label:>{_LABEL}} {'┤' if label else '│'}{''.join(chr(0x2800 + b) for b in bits)}")
    return [*lines, *_index_axis(len(values), columns // 2)]


def _joined(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every dot on the straight lines from point to point."""
    dots = list(points[:1])
    for (x0, y0), (x1, y1) in pairwise(points):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [(round(x0 + (x1 - x0) * k / steps), round(y0 + (y1 - y0) * k / steps)) for k in range(1, steps + 1)]
    return dots


def _index_axis(count: int, columns: int) -> list[str]:
    """The horizontal axis with up to five index labels under it."""
    wanted = min(5, count)
    indices = sorted({round(k * (count - 1) / max(wanted - 1, 1)) for k in range(wanted)})
    axis, text = ["─"] * columns, [" "] * (columns + _LABEL)
    for index in indices:
        at = round(index / max(count - 1, 1) * (columns - 1))
        axis[at] = "┬"
        label = str(index)
        start = max(at - len(label) // 2, 0)
        text[start : start + len(label)] = label
    margin = " " * _LABEL
    return [f"{margin} └{''.join(axis)}", f"{margin}  {''.join(text).rstrip()}"]
