"""A picture brought to the size that is drawn, and the way back: what was drawn, put into it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from sdxl_core.config import MaskConfig
from sdxl_core.errors import UsageError
from sdxl_core.masks import Box, bounds, feather, grow, paste, widen
from sdxl_core.picture_files import PictureError
from sdxl_core.resolutions import Size
from sdxl_core.source import Source
from sdxl_core.source_pictures import Pixels, SourcePicture, settled


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What stays of a picture of which a part is repainted.

    Args:
        below: (H, W, 3), what is written where nothing is repainted.
        alpha: (H, W), how much of what was drawn shows.
        box: where in `below` what was drawn lies, whatever its size.
    """

    below: Pixels
    alpha: Pixels
    box: Box

    def finish(self, drawn: Pixels) -> Pixels:
        """What was drawn (h, w, 3), in its place; every byte outside the mask is `below`'s."""
        top, left, bottom, right = self.box
        piece = _stretch(drawn, (bottom - top, right - left), Image.Resampling.LANCZOS)
        whole = self.below.copy()
        inside = (slice(top, bottom), slice(left, right))
        whole[inside] = paste(whole[inside], piece, self.alpha[inside])
        return whole


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What a picture starts from, and what its result is put back into.

    Args:
        image: (h, w, 3) at the size that is drawn.
        mask: (h, w), 255 where it is to be repainted; None for everywhere.
        frame: what stays; None where all is repainted.
    """

    image: Pixels
    mask: Pixels | None = None
    frame: Frame | None = None

    def finish(self, drawn: Pixels) -> Pixels:
        """The whole picture with what was drawn (h, w, 3) in it."""
        return drawn if self.frame is None else self.frame.finish(drawn)


def build_canvas(source: Source, size: Size, picture: SourcePicture, mask: SourcePicture | None) -> Canvas:
    """Lay a picture and its mask out for drawing at `size` (height, width).

    Raises:
        UsageError: nothing is left to be repainted.
        PictureError: nothing of it is left at this size.
    """
    how = source.how.mask
    below, level = spread(source, picture, mask)
    if level is not None and how.only:
        top, left, bottom, right = box = working_box(source, level, size[1] / size[0])
        piece = (slice(top, bottom), slice(left, right))
        return Canvas(
            _stretch(below[piece], size, Image.Resampling.LANCZOS),
            _left(settled(_stretch(level[piece], size, Image.Resampling.BILINEAR)), mask),
            Frame(below, feather(level, how.blur), box),
        )
    image = fit(below, size, source.how.resize)
    if level is None:
        return Canvas(image)
    fitted = _left(settled(fit(level, size, source.how.resize)), mask)
    return Canvas(image, fitted, Frame(image, feather(fitted, how.blur), (0, 0, *size)))


def _left(level: Pixels, mask: SourcePicture | None) -> Pixels:
    """A mask at the size that is drawn, if anything of it is left there."""
    if mask is not None and not level.any():
        height, width = level.shape
        raise PictureError(
            f"the mask {mask.file.name} leaves nothing to be repainted at {width}x{height}: what it marks is too small",
            hint="draw larger, widen it with --mask-grow, or work on its part alone with --only-masked",
        )
    return level


def spread(source: Source, picture: SourcePicture, mask: SourcePicture | None) -> tuple[Pixels, Pixels | None]:
    """The picture with its margins, which repeat its edge, and the mask as inverted, grown and with the margins in it.

    Raises:
        UsageError: the mask leaves nothing to be repainted.
    """
    left, top, right, bottom = source.margins
    around = ((top, bottom), (left, right))
    pixels = np.pad(picture.pixels, (*around, (0, 0)), mode="edge")
    if not source.repaints_a_part:
        return pixels, None
    how = source.how.mask
    level = np.zeros(picture.file.size, np.uint8)
    if mask is not None:
        level = settled(_stretch(mask.pixels, picture.file.size, Image.Resampling.BILINEAR))
        level = 255 - level if how.invert else level
    level = grow(np.pad(level, around, constant_values=255), how.grow)
    if not level.any():
        assert mask is not None
        raise _nothing_to_paint(mask, how, picture.file.size)
    return pixels, level


def check_mask(mask: SourcePicture, how: MaskConfig) -> None:
    """Refuse a mask that leaves nothing to be repainted of any picture.

    Raises:
        UsageError: see there.
    """
    if (mask.pixels == (255 if how.invert else 0)).all():
        raise _nothing_to_paint(mask, how, mask.file.size)


def _nothing_to_paint(mask: SourcePicture, how: MaskConfig, size: Size) -> UsageError:
    """Of a mask that was brought to `size`."""
    scaled = "" if size == mask.file.size else f", scaled to {size[1]}x{size[0]},"
    colour = "white" if how.invert else "black"
    return UsageError(
        f"the mask {mask.file.name}{scaled} is {colour} everywhere, so nothing would be repainted",
        hint="white is repainted and black stays; --mask-invert turns that round",
    )


def working_box(source: Source, level: Pixels, aspect: float) -> Box:
    """The part of the canvas that is worked on alone, of width / height near `aspect`."""
    return widen(bounds(level), source.how.mask.padding, aspect, (level.shape[0], level.shape[1]))


def fit(pixels: Pixels, size: Size, how: Literal["crop", "pad", "stretch"]) -> Pixels:
    """Bring a picture (h, w, 3) or mask (h, w) to another size.

    crop scales it to cover the size and cuts the middle out; pad scales it to lie inside, where its edge is repeated
    around a picture and black stands around a mask; stretch changes its shape. At its own size it stays as it is.
    """
    resample = Image.Resampling.LANCZOS if pixels.ndim == 3 else Image.Resampling.BILINEAR
    (height, width), (h, w) = pixels.shape[:2], size
    if how == "crop":
        scale = max(h / height, w / width)
        left, top = (width - w / scale) / 2, (height - h / scale) / 2
        return _stretch(pixels, size, resample, (left, top, width - left, height - top))
    if how == "pad":
        scale = min(h / height, w / width)
        inner = (min(max(round(height * scale), 1), h), min(max(round(width * scale), 1), w))
        top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
        around = ((top, h - inner[0] - top), (left, w - inner[1] - left))
        small = _stretch(pixels, inner, resample)
        return np.pad(small, (*around, (0, 0)), mode="edge") if pixels.ndim == 3 else np.pad(small, around)
    return _stretch(pixels, size, resample)


def _stretch(
    pixels: Pixels, size: Size, resample: Image.Resampling, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """Scale all of it, or the box (left, top, right, bottom), to (height, width)."""
    height, width = pixels.shape[:2]
    if size == (height, width) and box in (None, (0, 0, width, height)):
        return pixels
    # A box may lie a rounding error outside, which Pillow refuses.
    inside = None if box is None else (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resample, box=inside))
