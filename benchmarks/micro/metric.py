"""Judging pictures: which thing is drawn, on which background, in which style; where it lies and how sharp it is.

Pictures are (h, w, 3) uint8 arrays. Things are told apart at low resolution: a picture is reduced to a quarter of its
size and compared, by squared distance in RGB, with every thing's own drawing on the right background,
in a few sizes and at small shifts.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drawing import fit
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

REDUCE = 4  # 128 pixels to 32
SCALES = (0.76, 0.82, 0.88, 0.94)  # of the picture, as the data is drawn
MAX_SHIFT = 2  # in reduced pixels
BORDER = 4  # pixels
_FOREGROUND = 40  # of 255 in any channel


@dataclass(frozen=True)
class Bank:
    """Reduced drawings of all things in one style: premultiplied colour and alpha, (things, variants, h, w, ...)."""

    colour: Floats
    alpha: Floats

    def on(self, background: tuple[int, int, int]) -> Floats:
        """All of them on a background, (things, variants, h * w * 3)."""
        picture = self.colour + (1 - self.alpha[..., None]) * np.array(background, dtype=np.float32)
        return picture.reshape(*picture.shape[:2], -1)


class References:
    """Every thing's drawing in both styles, and the palette, from a folder that build_data.py wrote."""

    def __init__(self, data: Path) -> None:
        build = json.loads((data / "build.json").read_text(encoding="utf-8"))
        self.side: int = build["size"]
        self.things: list[str] = [thing["name"] for thing in build["things"]]
        self.phrases: dict[str, str] = {thing["name"]: thing["phrase"] for thing in build["things"]}
        self.palette: dict[str, tuple[int, int, int]] = {k: tuple(v) for k, v in build["palette"].items()}
        self.styles: list[str] = build["styles"]
        side = self.side
        whole = [(scale * side, scale * side) for scale in SCALES]
        half = [(scale * side, 0.9 * side) for scale in (0.44, 0.48)]
        self._whole = {style: self._load(data, style, (side, side), whole) for style in self.styles}
        self._half = {style: self._load(data, style, (side, side // 2), half) for style in self.styles}
        self._ready: dict[tuple[str, str, bool], tuple[Floats, Floats]] = {}

    def _load(self, data: Path, style: str, canvas: tuple[int, int], boxes: list[tuple[float, float]]) -> Bank:
        drawn = []
        for name in self.things:
            with Image.open(data / "references" / style / f"{name}.png") as file:
                icon = file.convert("RGBA")
            drawn.append([_reduced(fit(icon, *box), canvas) for box in boxes])
        stack = np.array(drawn, dtype=np.float32)
        return Bank(stack[..., :3], stack[..., 3])

    def _bank(self, style: str, background: str, half: bool) -> tuple[Floats, Floats]:
        """Drawings on a background and their squared lengths; kept, for the same ones are asked for all the time."""
        key = (style, background, half)
        if key not in self._ready:
            bank = (self._half if half else self._whole)[style].on(self.palette[background])
            self._ready[key] = (bank, (bank**2).sum(-1))
        return self._ready[key]

    def distances(
        self, picture: Pixels, style: str, background: str, *, half: bool = False, only: int | None = None
    ) -> Floats:
        """Squared distance to the best variant of every thing (things,), or of the one with index `only` (1,).

        `half` says that the picture is one half of a pair.
        """
        bank, lengths = self._bank(style, background, half)
        if only is not None:
            bank, lengths = bank[only : only + 1], lengths[only : only + 1]
        queries = _shifted(reduce(picture))
        # |q - r|^2 without building every difference.
        cross = (queries @ bank.reshape(-1, bank.shape[-1]).T).reshape(len(queries), *lengths.shape)
        squared = (queries**2).sum(-1)[:, None, None] - 2 * cross + lengths[None]
        return np.asarray(squared.min(axis=(0, 2)))

    def thing(self, picture: Pixels, style: str, background: str, *, half: bool = False) -> str:
        """The thing whose drawing is nearest, in a known style on a known background."""
        return self.things[int(self.distances(picture, style, background, half=half).argmin())]

    def style(self, picture: Pixels, thing: str, background: str) -> str:
        """The style in which the thing's drawing is nearest."""
        index = self.things.index(thing)
        return min(self.styles, key=lambda style: float(self.distances(picture, style, background, only=index)[0]))

    def background(self, picture: Pixels) -> str:
        """The palette colour nearest to the middle colour of the picture's border."""
        edge = np.median(border(picture), axis=0)
        return min(self.palette, key=lambda name: float(((edge - np.array(self.palette[name])) ** 2).sum()))


def _reduced(icon: Image.Image, canvas: tuple[int, int]) -> Floats:
    """An icon in the middle of a transparent canvas, reduced, with premultiplied colour: (h, w, 4)."""
    sheet = Image.new("RGBA", (canvas[1], canvas[0]))
    sheet.paste(icon, ((canvas[1] - icon.width) // 2, (canvas[0] - icon.height) // 2))
    pixels = np.asarray(sheet, dtype=np.float32)
    alpha = pixels[..., 3:] / 255
    return _mean_blocks(np.concatenate([pixels[..., :3] * alpha, alpha], axis=-1))


def _mean_blocks(pixels: Floats) -> Floats:
    h, w, c = pixels.shape
    blocks: Floats = pixels.reshape(h // REDUCE, REDUCE, w // REDUCE, REDUCE, c).mean(axis=(1, 3))
    return blocks


def reduce(picture: Pixels) -> Floats:
    """The picture at a quarter of its size, (h / 4, w / 4, 3)."""
    return _mean_blocks(picture.astype(np.float32))


def _shifted(small: Floats) -> Floats:
    """All shifts of a reduced picture, flattened; what comes in from outside repeats the edge."""
    h, w, _ = small.shape
    padded = np.pad(small, ((MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0)), mode="edge")
    steps = range(2 * MAX_SHIFT + 1)
    return np.stack([padded[y : y + h, x : x + w].ravel() for y in steps for x in steps])


def border(picture: Pixels) -> Pixels:
    """The pixels of the outer ring, (n, 3)."""
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return picture[~inside]


def centre(picture: Pixels) -> tuple[float, float] | None:
    """Centre (x, y) in pixels of all that differs from the border's middle colour; None where nothing does."""
    edge = np.median(border(picture), axis=0)
    mask = np.abs(picture.astype(np.float32) - edge).max(axis=-1) > _FOREGROUND
    if not mask.any():
        return None
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


def sharpness(picture: Pixels) -> float:
    """Mean squared Laplacian of the brightness (0 to 255): large where edges are crisp."""
    grey = picture.astype(np.float32).mean(axis=-1)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float((laplacian**2).mean())
