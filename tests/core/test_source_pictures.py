"""Reading pictures: what each kind of file becomes, and one clear error for each that is none."""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdxl_core.errors import UsageError
from sdxl_core.picture_files import PictureError
from sdxl_core.source_pictures import MOST_PIXELS, parse_colour, read_mask, read_picture

RAMP = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def save(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_rgb_comes_through_as_it_is(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, RAMP, **({"lossless": True} if name.endswith("webp") else {}))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, RAMP)
    assert (picture.file.name, picture.file.size, picture.notes) == (name, (4, 6), ())
    assert picture.file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_stands_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = save(tmp_path / "a.png", RAMP, exif=exif)
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation]
    picture = read_picture(lying)
    np.testing.assert_array_equal(picture.pixels, turn(RAMP))
    assert picture.file.size == picture.pixels.shape[:2]


@pytest.mark.parametrize(("background", "shows"), [("#ffffff", (255, 255, 255)), ("#102030", (16, 32, 48))])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_background(
    tmp_path: Path, mode: str, background: str, shows: tuple[int, int, int]
) -> None:
    grey = np.full((2, 2, 4), 120, np.uint8)
    grey[..., 3] = [[0, 255], [255, 0]]
    path = tmp_path / "a.png"
    if mode == "P":
        paletted = Image.new("P", (2, 2))
        paletted.putpalette([0, 0, 0, 120, 120, 120])
        paletted.putdata([0, 1, 1, 0])
        paletted.save(path, transparency=0)
    else:
        save(path, grey, mode)
    pixels = read_picture(path, background).pixels
    assert [tuple(int(v) for v in p) for p in pixels.reshape(4, 3)] == [shows, (120,) * 3, (120,) * 3, shows]


def test_half_transparent_is_mixed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((1, 1, 4), [0, 0, 0, 128], np.uint8))
    assert abs(int(read_picture(path).pixels[0, 0, 0]) - 127) <= 1


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 300, 32768, 65535]], np.uint16)
    pixels = read_picture(save(tmp_path / "a.png", wide)).pixels
    assert pixels[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_other_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    flat = Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).convert(mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), flat)
    picture = read_picture(path)
    assert (picture.pixels == 255).all()
    assert picture.pixels.shape == (8, 8, 3)
    assert picture.notes == (("a.tif is CMYK: converted to RGB without a colour profile",) if mode == "CMYK" else ())


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / name)
    assert picture.notes == (f"{name} has several frames: the first is taken",)
    assert picture.pixels.max() < 8


def test_a_second_picture_in_a_jpeg_is_no_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").notes == ()


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def broken_files() -> dict[str, tuple[bytes, str]]:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    cut_png = buffer.getvalue()[:-4000]
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    cut_jpeg = buffer.getvalue()[:-2000]
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(buffer, "TIFF")
    return {
        "empty": (b"", "not a picture that can be read"),
        "text": (b"a cat", "not a picture that can be read"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture that can be read"),
        "cut png": (cut_png, "damaged or cut off"),
        "cut jpeg": (cut_jpeg, "damaged or cut off"),
        "no pixels": (png(8, 8), "damaged or cut off"),
        "bomb": (png(20000, 20000), "more than 134 million pixels"),
        "larger bomb": (png(2**31 - 1, 2**31 - 1), "more than 134 million pixels"),
        "no white": (buffer.getvalue(), "nothing says which of its 32-bit values is white"),
    }


BROKEN = broken_files()


@pytest.mark.parametrize("kind", list(BROKEN))
def test_what_is_no_picture_is_one_error(tmp_path: Path, kind: str) -> None:
    data, says = BROKEN[kind]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(PictureError, match=f"a.png: .*{says}"):
        read_picture(path)


def test_no_file_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("missing.png", "no such file"), (".", "a folder, not a picture"), ("pipe", "not a file")):
        with pytest.raises(PictureError, match=says):
            read_picture(tmp_path / name)


@pytest.mark.slow
def test_a_picture_just_large_enough_is_read(tmp_path: Path) -> None:
    assert 12240 * 8000 < MOST_PIXELS < 2 * 9248 * 9248
    path = tmp_path / "wide.png"
    Image.new("1", (40000, 3000)).save(path)
    assert read_picture(path).file.size == (3000, 40000)


def test_broken_exif_does_not_spoil_a_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RAMP, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03")
    np.testing.assert_array_equal(read_picture(path).pixels, RAMP)


def test_a_mask_is_brightness_and_transparent_is_black(tmp_path: Path) -> None:
    levels = np.array([[0, 7, 8, 128, 247, 248, 255]], np.uint8)
    assert read_mask(save(tmp_path / "a.png", levels)).pixels.tolist() == [[0, 0, 8, 128, 247, 255, 255]]
    clear = np.full((1, 2, 4), 255, np.uint8)
    clear[0, 0, 3] = 0
    assert read_mask(save(tmp_path / "b.png", clear)).pixels.tolist() == [[0, 255]]


@pytest.mark.parametrize(("text", "colour"), [("white", "#ffffff"), ("#10A0ff", "#10a0ff"), ("#fff", "#ffffff")])
def test_colours(text: str, colour: str) -> None:
    assert parse_colour(text) == colour


def test_no_colour() -> None:
    with pytest.raises(UsageError, match="'whit' is no colour"):
        parse_colour("whit")
