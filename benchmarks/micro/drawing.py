"""Drawing: rasterised icons on flat colours, and how well they can be seen there."""

import io
import random

import numpy as np
import resvg_py
from PIL import Image, ImageEnhance, ImageFilter
from sources import IconSet

PALETTE = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "gray": (140, 140, 140),
    "red": (214, 40, 48),
    "orange": (245, 130, 32),
    "yellow": (255, 217, 59),
    "green": (56, 158, 70),
    "blue": (33, 105, 220),
    "purple": (136, 62, 178),
    "pink": (255, 160, 200),
}
_SEEN = 40  # of 255, in any channel: below it, a difference from the background is hard to see at this size


def rasterise(icons: IconSet, slug: str, side: int) -> Image.Image:
    """One icon as RGBA, `side` pixels before the empty margin is cut off."""
    svg = icons.svg(slug)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    # Faint shadows would make the margin uneven.
    box = image.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox()
    assert box is not None, slug
    return image.crop(box)


def fit(icon: Image.Image, width: float, height: float) -> Image.Image:
    """The icon scaled to fit in a box of `width` x `height` pixels, its shape kept."""
    scale = min(width / icon.width, height / icon.height)
    size = (max(1, round(icon.width * scale)), max(1, round(icon.height * scale)))
    return icon.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def compose(size: tuple[int, int], background: str, placed: list[tuple[Image.Image, float, float]]) -> Image.Image:
    """An RGB picture of `size` (height, width): icons on a flat colour, each at its centre (x, y) in pixels."""
    canvas = Image.new("RGB", (size[1], size[0]), PALETTE[background])
    for icon, x, y in placed:
        canvas.paste(icon, (round(x - icon.width / 2), round(y - icon.height / 2)), icon)
    return canvas


def visible_share(icon: Image.Image, background: str) -> float:
    """How much of the icon's area differs plainly from the background colour, 0 to 1."""
    pixels = np.asarray(icon, dtype=np.float32)
    alpha = pixels[..., 3] / 255
    apart = np.abs(pixels[..., :3] - np.array(PALETTE[background], dtype=np.float32)).max(axis=-1) > _SEEN
    return float((apart * alpha).sum() / alpha.sum())


def degrade(picture: Image.Image, amount: float, rng: random.Random) -> Image.Image:
    """A worse copy in one way of four: blurred, made small and enlarged again, squeezed by JPEG, or faded.

    Args:
        picture: RGB, 128 pixels a side or so.
        amount: 0 (hardly seen) to 1 (bad).
        rng: chooses the way.
    """
    way = rng.choice(("blur", "small", "jpeg", "fade"))
    if way == "blur":
        return picture.filter(ImageFilter.GaussianBlur(0.6 + 2.0 * amount))
    if way == "small":
        factor = 1.5 + 2.5 * amount
        small = picture.resize([max(1, round(side / factor)) for side in picture.size], Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.BICUBIC)
    if way == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=round(30 - 26 * amount), subsampling=2)
        return Image.open(buffer).convert("RGB")
    faded = ImageEnhance.Contrast(picture).enhance(1 - 0.55 * amount)
    return ImageEnhance.Color(faded).enhance(1 - 0.7 * amount)
