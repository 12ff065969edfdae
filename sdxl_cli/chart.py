"""A picture of a list of noise levels: points joined by a line over a logarithmic axis."""

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sdxl_cli.plot import log_ticks

_WIDTH, _HEIGHT, _SCALE = 1200, 800, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 110, 40, 80, 90
_PAPER, _INK, _SOFT, _GRID = (255, 255, 255), (33, 37, 41), (108, 117, 125), (233, 236, 239)
_LINE = (25, 113, 194)


def draw_sigmas(sigmas: Sequence[float], title: str) -> bytes:
    """Draw noise levels against their index as a PNG of 1200 x 800 pixels.

    Args:
        sigmas: two or more decreasing levels; the last one, 0, is off a logarithmic axis and is left out.
        title: stands above the drawing.

    Returns:
        The bytes of the file.
    """
    values = [s for s in sigmas if s > 0]
    low, high = min(values), max(values)
    margin = (high / low) ** 0.03 if high > low else 1.5
    frame = _Frame(math.log(low / margin), math.log(high * margin), max(len(values) - 1, 1))
    canvas = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_axes(draw, frame, low, high, len(values))
    points = [frame.at(i, v) for i, v in enumerate(values)]
    draw.line(points, fill=_LINE, width=2 * _SCALE + 1, joint="curve")
    radius = 5 * _SCALE
    for x, y in points if len(points) <= 60 else points[:: len(points) - 1]:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_LINE, outline=_PAPER, width=_SCALE)
    _text(draw, (_LEFT, 28), title, 26, _INK, "la")
    _text(draw, (_WIDTH - _RIGHT, 34), f"{high:.4g} to {low:.4g}, then 0", 19, _SOFT, "ra")
    _text(draw, ((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 24), "index of the step", 19, _SOFT, "ms")
    _draw_upright(canvas, "sigma")
    buffer = io.BytesIO()
    canvas.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


class _Frame:
    """Maps an index and a level to pixels of the supersampled canvas."""

    def __init__(self, log_low: float, log_high: float, last: int) -> None:
        self.log_low, self.log_high, self.last = log_low, log_high, last

    def at(self, index: float, value: float) -> tuple[float, float]:
        across = _LEFT + 14 + index / self.last * (_WIDTH - _LEFT - _RIGHT - 28)
        share = (math.log(value) - self.log_low) / (self.log_high - self.log_low)
        return across * _SCALE, (_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)) * _SCALE


def _draw_axes(draw: ImageDraw.ImageDraw, frame: _Frame, low: float, high: float, count: int) -> None:
    left, right = _LEFT * _SCALE, (_WIDTH - _RIGHT) * _SCALE
    top, bottom = _TOP * _SCALE, (_HEIGHT - _BOTTOM) * _SCALE
    for tick in log_ticks(low, high, 12):
        y = frame.at(0, tick)[1]
        draw.line((left, y, right, y), fill=_GRID, width=_SCALE)
        _text(draw, (_LEFT - 12, y / _SCALE), f"{tick:g}", 18, _SOFT, "rm")
    for index in _index_ticks(count):
        x = frame.at(index, low)[0]
        draw.line((x, top, x, bottom), fill=_GRID, width=_SCALE)
        draw.line((x, bottom, x, bottom + 7 * _SCALE), fill=_SOFT, width=_SCALE)
        _text(draw, (x / _SCALE, _HEIGHT - _BOTTOM + 12), str(index), 18, _SOFT, "ma")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=_SOFT, width=_SCALE + 1)


def _index_ticks(count: int) -> list[int]:
    """0 and every round number of steps, about ten of them."""
    for stride in (1, 2, 5, 10, 20, 50, 100, 200):
        if count / stride <= 12:
            break
    return list(range(0, count, stride))


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int], anchor: str
) -> None:
    font = ImageFont.load_default(size * _SCALE)
    draw.text((at[0] * _SCALE, at[1] * _SCALE), text, fill=colour, font=font, anchor=anchor)


def _draw_upright(canvas: Image.Image, text: str) -> None:
    """Write along the vertical axis."""
    label = Image.new("RGB", (200 * _SCALE, 30 * _SCALE), _PAPER)
    _text(ImageDraw.Draw(label), (100, 15), text, 19, _SOFT, "mm")
    upright = label.rotate(90, expand=True)
    centre = (_TOP + _HEIGHT - _BOTTOM) * _SCALE // 2
    canvas.paste(upright, (8 * _SCALE, centre - upright.height // 2))
