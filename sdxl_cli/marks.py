"""A drawing as a list of marks, and the two kinds of file that it becomes: PNG pixels and SVG text."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]
Anchor = Literal["start", "middle", "end"]

_SCALE = 3  # drawn larger and shrunk, for smooth edges
_PAPER = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Path:
    """A line through points; `dash` is the length of dashes and gaps, 0 for none."""

    points: Sequence[Point]
    colour: Colour
    width: float = 1.0
    dash: float = 0.0


@dataclass(frozen=True, slots=True)
class Area:
    """The inside of a closed line."""

    points: Sequence[Point]
    colour: Colour


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle with a rim of the paper's colour."""

    at: Point
    radius: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Label:
    """A text on one line, its middle line through `at`; `upright` turns it to be read from below."""

    at: Point
    text: str
    size: int
    colour: Colour
    anchor: Anchor = "start"
    upright: bool = False


Mark = Path | Area | Dot | Label


def to_png(marks: Sequence[Mark], width: int, height: int) -> bytes:
    """The bytes of a PNG file of width x height pixels; later marks lie over earlier ones."""
    canvas = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for mark in marks:
        match mark:
            case Path():
                for piece in _pieces(mark):
                    draw.line(_scaled(piece), fill=mark.colour, width=round(mark.width * _SCALE), joint="curve")
            case Area():
                draw.polygon(_scaled(mark.points), fill=mark.colour)
            case Dot(at=(x, y), radius=radius):
                corners = [(x - radius, y - radius), (x + radius, y + radius)]
                draw.ellipse(_scaled(corners), fill=mark.colour, outline=_PAPER, width=_SCALE)
            case Label():
                _write(canvas, draw, mark)
    buffer = io.BytesIO()
    canvas.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def to_svg(marks: Sequence[Mark], width: int, height: int) -> bytes:
    """The bytes of an SVG file; later marks lie over earlier ones."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_element(mark) for mark in marks),
        "</svg>",
    ]
    return ("\n".join(lines) + "\n").encode()


def _element(mark: Mark) -> str:
    colour = "#{:02x}{:02x}{:02x}".format(*mark.colour)
    match mark:
        case Path():
            dash = f' stroke-dasharray="{mark.dash:g}"' if mark.dash else ""
            return (
                f'<polyline points="{_listed(mark.points)}" fill="none" stroke="{colour}" '
                f'stroke-width="{mark.width:g}" stroke-linejoin="round"{dash}/>'
            )
        case Area():
            return f'<polygon points="{_listed(mark.points)}" fill="{colour}"/>'
        case Dot(at=(x, y)):
            return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{mark.radius:g}" fill="{colour}" stroke="#ffffff"/>'
        case Label(at=(x, y)):
            turn = f' transform="rotate(-90 {x:.2f} {y:.2f})"' if mark.upright else ""
            return (
                f'<text x="{x:.2f}" y="{y:.2f}" dy="0.35em" font-size="{mark.size}" fill="{colour}" '
                f'text-anchor="{mark.anchor}"{turn}>{html.escape(mark.text)}</text>'
            )


def _listed(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _scaled(points: Sequence[Point]) -> list[Point]:
    return [(x * _SCALE, y * _SCALE) for x, y in points]


def _pieces(path: Path) -> list[list[Point]]:
    """The path, or its dashes."""
    if not path.dash:
        return [list(path.points)]
    pieces: list[list[Point]] = []
    drawn = 0.0
    for (x0, y0), (x1, y1) in zip(path.points, path.points[1:], strict=False):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        count = max(1, round(length))
        for k in range(count):
            inside = int(drawn / path.dash) % 2 == 0
            ends = [(x0 + (x1 - x0) * j / count, y0 + (y1 - y0) * j / count) for j in (k, k + 1)]
            if inside and pieces and pieces[-1][-1] == ends[0]:
                pieces[-1].append(ends[1])
            elif inside:
                pieces.append(ends)
            drawn += length / count
    return pieces


def _write(canvas: Image.Image, draw: ImageDraw.ImageDraw, label: Label) -> None:
    font = ImageFont.load_default(label.size * _SCALE)
    anchor = {"start": "lm", "middle": "mm", "end": "rm"}[label.anchor]
    x, y = label.at[0] * _SCALE, label.at[1] * _SCALE
    if not label.upright:
        draw.text((x, y), label.text, fill=label.colour, font=font, anchor=anchor)
        return
    width, height = round(font.getlength(label.text)) + 2 * _SCALE, label.size * 2 * _SCALE
    strip = Image.new("RGB", (width, height), _PAPER)
    ImageDraw.Draw(strip).text((width / 2, height / 2), label.text, fill=label.colour, font=font, anchor="mm")
    upright = strip.rotate(90, expand=True)
    canvas.paste(upright, (round(x - height / 2), round(y - width / 2)))
