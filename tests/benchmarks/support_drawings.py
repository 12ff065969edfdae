"""A small set of plain shapes, written as the recipe writes the real one."""

from pathlib import Path

from build_data import Icons, write_set
from PIL import Image, ImageDraw
from things import Thing

SIDE = 64
SHAPES = ("disc", "bar", "ring", "cross", "wedge", "pillar")
COLOURS = {
    "noto": ((200, 120, 60), (90, 200, 190), (120, 70, 40), (250, 250, 180), (60, 60, 110), (220, 90, 170)),
    "flat": ((90, 60, 60), (230, 120, 220), (60, 190, 230), (110, 140, 40), (250, 200, 160), (30, 90, 90)),
}


def draw_icon(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    icon = Image.new("RGBA", (100, 100))
    pen = ImageDraw.Draw(icon)
    fill = (*colour, 255)
    if shape == "disc":
        pen.ellipse((0, 0, 99, 99), fill=fill)
    elif shape == "bar":
        pen.rectangle((0, 35, 99, 65), fill=fill)
    elif shape == "ring":
        pen.ellipse((0, 0, 99, 99), outline=fill, width=22)
    elif shape == "cross":
        pen.rectangle((0, 38, 99, 62), fill=fill)
        pen.rectangle((38, 0, 62, 99), fill=fill)
    elif shape == "wedge":
        pen.polygon([(0, 0), (99, 50), (0, 99)], fill=fill)
    else:
        pen.rectangle((35, 0, 65, 99), fill=fill)
    box = icon.getbbox()
    assert box is not None
    return icon.crop(box)


def things() -> list[Thing]:
    return [Thing(shape, shape, (f"plain {shape}",), None, "Shapes") for shape in SHAPES]


def icons() -> Icons:
    return {
        (shape, style): draw_icon(shape, colour)
        for style, colours in COLOURS.items()
        for shape, colour in zip(SHAPES, colours, strict=True)
    }


def write_shapes(out: Path, count: int = 300, seed: int = 0) -> Path:
    write_set(out, things(), icons(), count, SIDE, seed)
    return out
