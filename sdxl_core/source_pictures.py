"""Pictures to start from, as they lie on the disk: turned upright, on one background, 8 bits RGB. Imports no torch."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from sdxl_core.errors import UsageError
from sdxl_core.picture_files import PictureError
from sdxl_core.source import SourceFile

Pixels = NDArray[np.uint8]
"""(height, width, 3) RGB, or (height, width) of a mask; 0 to 255."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MOST_PIXELS = 2**27  # 134 million: the largest telephones give 108, and 8 bits RGB of it are 400 MB
MOST_BYTES = 2**30
_WIDE_GREY = {"I;16", "I;16L", "I;16B", "I;16N"}
_NO_WHITE = {"I", "F"}  # 32 bits: nothing in the file says which value is white


@dataclass(frozen=True, slots=True, eq=False)
class SourcePicture:
    """A picture that was read.

    Args:
        file: which one.
        pixels: (h, w, 3) of a picture, (h, w) of a mask.
        notes: what was done to it that its owner may not expect, one sentence each.
    """

    file: SourceFile
    pixels: Pixels
    notes: tuple[str, ...] = ()


def read_picture(path: Path, background: str = "#ffffff") -> SourcePicture:
    """Read a PNG, JPEG, WebP, TIFF, BMP or GIF file.

    The EXIF orientation is applied; what is transparent shows `background`; 16 bits become 8 by rounding; palettes,
    grey and CMYK become RGB, without colour profiles; of an animation the first frame is taken.

    Raises:
        PictureError: missing, not a picture of these formats, damaged or cut off, too large, or of 32 bits.
    """
    image, digest, notes = _open(path)
    try:
        rgb = _flatten(image, background)
    except (OSError, ValueError) as error:
        raise PictureError(f"{path}: its pixels cannot be converted: {error}") from None
    return _source(path, np.asarray(rgb), digest, notes)


def read_mask(path: Path) -> SourcePicture:
    """Read a mask: its brightness, (h, w), where 255 is to be repainted and 0 stays; what is transparent is black.

    Within 3 % of black or white counts as that, for JPEG does not keep them.

    Raises:
        PictureError: as `read_picture`.
    """
    rgb = read_picture(path, "#000000")
    level = np.asarray(Image.fromarray(rgb.pixels).convert("L"))
    return SourcePicture(rgb.file, settled(level), rgb.notes)


def settled(mask: Pixels) -> Pixels:
    """A mask (h, w) where what is within 3 % of black or white is that."""
    return np.where(mask < 8, 0, np.where(mask > 247, 255, mask)).astype(np.uint8)


def parse_colour(text: str) -> str:
    """A colour's name or #rrggbb as #rrggbb.

    Raises:
        UsageError: it is none.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UsageError(f"{text!r} is no colour", hint="a name such as white, or #rrggbb") from None
    return f"#{red:02x}{green:02x}{blue:02x}"


def _open(path: Path) -> tuple[Image.Image, str, list[str]]:
    """The decoded picture, upright; its sha256; notes."""
    data = _bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are checked here
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise PictureError(
                    f"{path}: {image.width}x{image.height} are more than {MOST_PIXELS // 10**6} million pixels",
                    hint="scale it down first",
                )
            notes = _notes(path, image)
            image.load()
            image = _upright(path, image, notes)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise PictureError(
            f"{path}: more than {MOST_PIXELS // 10**6} million pixels", hint="scale it down first"
        ) from None
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture that can be read", hint=f"one of: {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders of hostile bytes raise anything: SyntaxError, struct.error, ...
        raise PictureError(f"{path}: damaged or cut off: {error}") from None
    if image.mode in _NO_WHITE:
        raise PictureError(
            f"{path}: nothing says which of its 32-bit values is white", hint="save it with 8 or 16 bits"
        )
    return image, hashlib.sha256(data).hexdigest(), notes


def _bytes(path: Path) -> bytes:
    try:
        if not path.exists():
            raise PictureError(f"{path}: no such file")
        if path.is_dir():
            raise PictureError(f"{path}: a folder, not a picture", hint=f"give its pictures: '{path / '*.png'}'")
        if not path.is_file():
            raise PictureError(f"{path}: not a file")
        if path.stat().st_size > MOST_BYTES:
            raise PictureError(f"{path}: larger than {MOST_BYTES} bytes", hint="scale it down first")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise PictureError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _notes(path: Path, image: Image.Image) -> list[str]:
    notes = []
    # A telephone's JPEG may carry a second picture, a smaller copy or a depth map: format MPO, not an animation.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(f"{path.name} has several frames: the first is taken")
    if image.mode == "CMYK":
        notes.append(f"{path.name} is CMYK: converted to RGB without a colour profile")
    return notes


def _upright(path: Path, image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block is no reason to refuse a sound picture
        notes.append(f"the EXIF data of {path.name} cannot be read: it stays as it lies")
        return image


def _flatten(image: Image.Image, background: str) -> Image.Image:
    if image.mode in _WIDE_GREY:
        # Pillow would cut values at 255 instead of scaling them.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    sheet = Image.new("RGBA", over.size, background)
    sheet.alpha_composite(over)
    return sheet.convert("RGB")


def _source(path: Path, pixels: Pixels, digest: str, notes: list[str]) -> SourcePicture:
    height, width = pixels.shape[:2]
    return SourcePicture(SourceFile(name=path.name, sha256=digest, size=(height, width)), pixels, tuple(notes))
