"""Line plots in braille dots, with a true logarithmic axis, and sparklines."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

# Bit of each dot in a braille cell of 2 columns by 4 rows, counted from the top left. Source: Unicode, block U+2800.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLOCKS = "▁▂▃▄▅▆▇█"
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


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """A bar a value, its height logarithmic between `low` and `high`; values beyond them have the end's height.

    Args:
        values: all above 0.
        low: above 0.
        high: above `low`.
    """
    shares = [math.log(value / low) / math.log(high / low) for value in values]
    return "".join(_BLOCKS[round(min(max(share, 0), 1) * (len(_BLOCKS) - 1))] for share in shares)


def braille_plot(
    series: Sequence[Sequence[float]],
    width: int,
    height: int,
    paint: Callable[[str, int], str] = lambda text, number: text,
    firsts: Sequence[int] | None = None,
) -> list[str]:
    """Values against their index, joined by lines, the vertical axis logarithmic.

    Args:
        series: one or more, each of at least one value above 0.
        width: of the whole plot in characters, at least 20.
        height: of the drawing in lines, at least 3; the axis and a line of index labels are added.
        paint: gives a text the colour of a series by its number; a cell that several share has that of the last.
        firsts: index of the first value of each series; 0 of all if not given.

    Returns:
        The lines, top first.
    """
    columns, rows = (width - _LABEL - 2) * 2, height * 4
    low = math.log(min(min(values) for values in series))
    high = math.log(max(max(values) for values in series))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5

    def row_of(value: float) -> int:
        return round((high - math.log(value)) / (high - low) * (rows - 1))

    cells = [[0] * (columns // 2) for _ in range(height)]
    owners = [[0] * (columns // 2) for _ in range(height)]
    firsts = firsts or [0] * len(series)
    last = max(first + len(values) - 1 for first, values in zip(firsts, series, strict=True))
    for number, (first, values) in enumerate(zip(firsts, series, strict=True)):
        columns_of = ((round(i / max(last, 1) * (columns - 1)), v) for i, v in enumerate(values, first))
        for x, y in _joined([(column, row_of(v)) for column, v in columns_of]):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
            owners[y // 4][x // 2] = number

    labels = {row_of(t) // 4: f"{t:g}" for t in reversed(log_ticks(math.exp(low), math.exp(high), height // 2 + 1))}
    lines = []
    for row, (bits, numbers) in enumerate(zip(cells, owners, strict=True)):
        label = labels.get(row, "")
        drawn = "".join(
            paint(chr(0x2800 + b), number) if b else chr(0x2800) for b, number in zip(bits, numbers, strict=True)
        )
        lines.append(f"{label:>{_LABEL}} {'┤' if label else '│'}{drawn}")
    return [*lines, *_index_axis(last + 1, columns // 2)]


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
