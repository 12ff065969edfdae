"""Figures of noise levels for a paper: where the levels lie, how densely, and what the network was trained on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sdxl_cli.marks import Area, Colour, Dot, Label, Mark, Path, Point
from sdxl_cli.noise_rows import BetaRow
from sdxl_cli.plot import log_ticks

WIDTH, HEIGHT = 1400, 800
PALETTE: Sequence[Colour] = (
    (25, 113, 194),
    (232, 89, 12),
    (47, 158, 68),
    (156, 54, 181),
    (201, 42, 42),
    (12, 133, 153),
    (230, 119, 0),
    (73, 80, 87),
)
"""Colours of the curves in their order, told apart on paper and on a screen."""

MOST_CURVES = len(PALETTE)

_TOP, _BOTTOM = 130, HEIGHT - 80
_INK, _SOFT, _GRID, _FILL = (33, 37, 41), (108, 117, 125), (233, 236, 239), (222, 226, 230)
_MOST_DOTS = 60


@dataclass(frozen=True, slots=True)
class Curve:
    """A named list of noise levels, decreasing; a level 0 is off a logarithmic axis and is left out of drawings.

    Args:
        name: in the legend.
        sigmas: the levels.
        first: the step of the first of them.
    """

    name: str
    sigmas: Sequence[float]
    first: int = 0

    @property
    def positive(self) -> list[float]:
        """The levels above 0."""
        return [sigma for sigma in self.sigmas if sigma > 0]


@dataclass(frozen=True, slots=True)
class Density:
    """How often training draws a level: at each sigma the share per unit of log-SNR; `filled` or dashed."""

    name: str
    points: Sequence[Point]
    filled: bool


@dataclass(frozen=True, slots=True)
class _Panel:
    """A rectangle of the figure, and the pixels of its values."""

    left: float
    right: float
    across: tuple[float, float]
    up: tuple[float, float]
    log: bool

    def at(self, x: float, y: float) -> Point:
        """Pixels of a value; beyond the ends of the horizontal axis the end."""
        share = min(max((x - self.across[0]) / (self.across[1] - self.across[0]), 0), 1)
        low, high, value = (math.log(v) if self.log else v for v in (*self.up, y))
        return self.left + share * (self.right - self.left), _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)


def schedule_figure(curves: Sequence[Curve], trained: Sequence[Density], title: str) -> list[Mark]:
    """Two panels over one axis of sigma: the levels step by step, and the density of steps beside that of training.

    Args:
        curves: 1 to `MOST_CURVES`.
        trained: distributions that the second panel shows behind the steps.
        title: stands above.
    """
    shown = [sigma for curve in curves for sigma in curve.positive]
    low, high = min(shown), max(shown)
    margin = (high / low) ** 0.03 if high > low else 1.5
    up = (low / margin, high * margin)
    count = max(curve.first + len(curve.positive) for curve in curves)
    walked = count - min(curve.first for curve in curves)
    stairs = [_stairs(curve.positive, walked) for curve in curves]
    inside = [[(s, d) for s, d in density.points if up[0] <= s <= up[1]] for density in trained]
    last = max(count - 1, 1)
    levels = _Panel(110, 850, (-0.02 * last, 1.02 * last), up, log=True)
    where = _Panel(910, 1290, (0, _highest(stairs, inside)), up, log=True)
    marks: list[Mark] = [Label((levels.left, 40), title, 26, _INK)]
    marks += _sigma_grid(levels, where, low, high)
    marks += _training(where, trained, inside)
    marks += _across(levels, _whole_ticks(count - 1), "step", "noise level of every step")
    marks += _across(where, _ticks(*where.across, 5), "share of steps per unit of log-SNR", "where the steps lie")
    for curve, stair, colour in zip(curves, stairs, PALETTE, strict=False):
        points = [levels.at(i, sigma) for i, sigma in enumerate(curve.positive, curve.first)]
        if stair:  # a single level has no gap
            marks += [Path([where.at(d, s) for s, d in stair], colour, 2), Path(points, colour, 2.5)]
        marks += [Dot(at, 4.5, colour) for at in (points if len(points) <= _MOST_DOTS else points[:: len(points) - 1])]
    return marks + _legend([(curve.name, colour) for curve, colour in zip(curves, PALETTE, strict=False)], levels)


def beta_figure(rows: Sequence[BetaRow], title: str) -> list[Mark]:
    """Two panels over the timesteps: beta, and the share of signal that is left."""
    last = rows[-1].timestep
    most = max(row.beta for row in rows)
    panels = (
        (_Panel(130, 660, (0, last), (0, most * 1.05), log=False), [row.beta for row in rows], "beta"),
        (_Panel(800, 1330, (0, last), (0, 1.05), log=False), [row.alpha_bar for row in rows], "alpha_bar"),
    )
    marks: list[Mark] = [Label((panels[0][0].left, 40), title, 26, _INK)]
    names = ("variance that each step adds", "share of signal that is left")
    for (panel, values, axis), name, colour in zip(panels, names, PALETTE, strict=False):
        for tick in _ticks(*panel.up, 8):
            y = panel.at(0, tick)[1]
            marks.append(Path([(panel.left, y), (panel.right, y)], _GRID))
            marks.append(Label((panel.left - 12, y), f"{tick:g}", 18, _SOFT, "end"))
        marks += _across(panel, _whole_ticks(last), "timestep", name)
        points = [panel.at(row.timestep, value) for row, value in zip(rows, values, strict=True)]
        marks.append(Path([*points[:: math.ceil(len(points) / 100)], points[-1]], colour, 3))
        marks.append(Label((panel.left - 90, (_TOP + _BOTTOM) / 2), axis, 19, _SOFT, "middle", upright=True))
    return marks


def _stairs(sigmas: Sequence[float], steps: int) -> list[Point]:
    """The density of a list: every gap holds one of the steps, evenly over its log-SNR; the step to 0 has no place."""
    share = 1 / steps
    stairs = []
    for above, below in pairwise(sigmas):
        density = share / (2 * math.log(above / below))
        stairs += [(above, density), (below, density)]
    return stairs


def _highest(stairs: Sequence[Sequence[Point]], trained: Sequence[Sequence[Point]]) -> float:
    """The end of the axis of densities: a few narrow gaps may run over it, so that the rest can be seen."""
    highest = [density for points in trained for _, density in points]
    for stair in stairs:
        densities = sorted(density for _, density in stair)
        highest += densities[: math.ceil(len(densities) * 0.85)][-1:]
    return 1.2 * max(highest, default=1.0)


def _sigma_grid(levels: _Panel, where: _Panel, low: float, high: float) -> list[Mark]:
    """Lines of equal sigma through both panels, sigma at the left end and log-SNR at the right."""
    marks: list[Mark] = []
    for tick in log_ticks(low, high, 12):
        y = levels.at(0, tick)[1]
        marks += [Path([(panel.left, y), (panel.right, y)], _GRID) for panel in (levels, where)]
        marks.append(Label((levels.left - 12, y), f"{tick:g}", 18, _SOFT, "end"))
    for snr in _ticks(-2 * math.log(high), -2 * math.log(low), 9):
        y = where.at(0, math.exp(-snr / 2))[1]
        marks.append(Path([(where.right, y), (where.right + 7, y)], _SOFT))
        marks.append(Label((where.right + 14, y), f"{snr:g}", 18, _SOFT))
    marks.append(Path([(where.right, _TOP), (where.right, _BOTTOM)], _SOFT, 1.5))
    middle = (_TOP + _BOTTOM) / 2
    marks.append(Label((30, middle), "sigma", 19, _SOFT, "middle", upright=True))
    marks.append(Label((WIDTH - 30, middle), "log-SNR", 19, _SOFT, "middle", upright=True))
    return marks


def _training(where: _Panel, trained: Sequence[Density], inside: Sequence[Sequence[Point]]) -> list[Mark]:
    marks: list[Mark] = []
    for density, points in zip(trained, inside, strict=True):
        line = [where.at(d, s) for s, d in points]
        if density.filled and line:
            marks.append(Area([(where.left, line[0][1]), *line, (where.left, line[-1][1])], _FILL))
        elif line:
            marks.append(Path(line, _SOFT, 1.5, dash=7))
    for number, density in enumerate(trained):
        x, y = where.right, 34 + 24 * number
        if density.filled:
            marks.append(Area([(x - 26, y - 7), (x, y - 7), (x, y + 7), (x - 26, y + 7)], _FILL))
        else:
            marks.append(Path([(x - 26, y), (x, y)], _SOFT, 1.5, dash=7))
        marks.append(Label((x - 36, y), density.name, 15, _SOFT, "end"))
    return marks


def _across(panel: _Panel, ticks: Sequence[float], axis: str, title: str) -> list[Mark]:
    """The horizontal axis, the vertical line at the left, and the names of both."""
    marks: list[Mark] = []
    for tick in ticks:
        x = panel.at(tick, panel.up[1])[0]
        marks.append(Path([(x, _BOTTOM), (x, _BOTTOM + 7)], _SOFT))
        marks.append(Label((x, _BOTTOM + 22), f"{tick:g}", 18, _SOFT, "middle"))
    marks.append(Path([(panel.left, _TOP), (panel.left, _BOTTOM), (panel.right, _BOTTOM)], _SOFT, 1.5))
    marks.append(Label(((panel.left + panel.right) / 2, HEIGHT - 24), axis, 19, _SOFT, "middle"))
    marks.append(Label((panel.left, 100), title, 20, _INK))
    return marks


def _legend(names: Sequence[tuple[str, Colour]], panel: _Panel) -> list[Mark]:
    """Names of the curves in the upper right corner, which falling curves leave free."""
    marks: list[Mark] = []
    for number, (name, colour) in enumerate(names if len(names) > 1 else ()):
        y = _TOP + 18 + 28 * number
        marks.append(Path([(panel.right - 50, y), (panel.right - 14, y)], colour, 3))
        marks.append(Label((panel.right - 60, y), name, 18, _INK, "end"))
    return marks


def _whole_ticks(last: int) -> list[float]:
    """0 and every round number of steps, about ten of them."""
    stride = next((s for s in (1, 2, 5, 10, 20, 50, 100, 200) if last / s <= 11), 500)
    return list(range(0, last + 1, stride))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, at most `most` of them."""
    step: Callable[[int], float] = lambda k: (1, 2, 5)[k % 3] * 10.0 ** (k // 3)  # noqa: E731
    size = next(step(k) for k in range(-30, 30) if (high - low) / step(k) <= most)
    return [round(k * size, 12) for k in range(math.ceil(low / size), math.floor(high / size) + 1)]
