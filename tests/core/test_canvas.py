"""Canvases: how a picture comes to the size that is drawn, and what is written in the end."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support_tiny import tiny_config

from sdxl_core.canvas import build_canvas, fit
from sdxl_core.config import MaskConfig, SourceConfig
from sdxl_core.errors import UsageError
from sdxl_core.picture_files import PictureError
from sdxl_core.source import SourceFile, build_source
from sdxl_core.source_pictures import Pixels, SourcePicture

RNG = np.random.default_rng(0)
MODES: tuple[Literal["crop", "pad", "stretch"], ...] = ("crop", "pad", "stretch")


def source_picture(pixels: Pixels, name: str = "a.png") -> SourcePicture:
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return SourcePicture(SourceFile(name=name, sha256=digest, size=(pixels.shape[0], pixels.shape[1])), pixels)


def noise(height: int, width: int) -> SourcePicture:
    return source_picture(RNG.integers(0, 256, (height, width, 3), np.uint8))


def mask_of(height: int, width: int, rows: slice, columns: slice) -> SourcePicture:
    level = np.zeros((height, width), np.uint8)
    level[rows, columns] = 255
    return source_picture(level, "mask.png")


def canvas_of(
    picture: SourcePicture,
    size: tuple[int, int],
    mask: SourcePicture | None = None,
    margins: tuple[int, int, int, int] = (0, 0, 0, 0),
    resize: Literal["crop", "pad", "stretch"] = "crop",
    **how: Any,
) -> Any:
    config = SourceConfig(resize=resize, mask=MaskConfig(**how))
    source = build_source(tiny_config(), config, picture.file, None if mask is None else mask.file, margins)
    return build_canvas(source, size, picture, mask)


@pytest.mark.parametrize("how", MODES)
def test_at_its_own_size_a_picture_stays_as_it_is(how: Literal["crop", "pad", "stretch"]) -> None:
    picture = noise(16, 24)
    np.testing.assert_array_equal(fit(picture.pixels, (16, 24), how), picture.pixels)


def test_crop_cuts_the_middle_out_pad_repeats_the_edge_and_stretch_keeps_all() -> None:
    thirds = np.zeros((10, 30, 3), np.uint8)
    thirds[:, :10, 0] = thirds[:, 10:20, 1] = thirds[:, 20:, 2] = 200
    assert (fit(thirds, (10, 10), "crop") == (0, 200, 0)).all()
    padded = fit(thirds, (30, 30), "pad")
    np.testing.assert_array_equal(padded[10:20], thirds)
    np.testing.assert_array_equal(padded[:10], np.broadcast_to(thirds[0], (10, 30, 3)))
    np.testing.assert_array_equal(padded[20:], np.broadcast_to(thirds[0], (10, 30, 3)))
    stretched = fit(thirds, (10, 12), "stretch")
    assert (stretched[:, [0, 6, 11]].argmax(-1) == [0, 1, 2]).all()


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("size", [(8, 8), (64, 8), (8, 64), (1024, 512)])
@pytest.mark.parametrize("given", [(1, 1), (1, 200), (200, 1), (37, 91), (91, 37)])
def test_every_size_becomes_every_other(
    how: Literal["crop", "pad", "stretch"], size: tuple[int, int], given: tuple[int, int]
) -> None:
    pixels = np.full((*given, 3), 77, np.uint8)
    assert fit(pixels, size, how).shape == (*size, 3)
    assert (fit(pixels, size, how) == 77).all()
    assert fit(pixels[..., 0], size, how).shape == size


@pytest.mark.parametrize("blur", [0, 4, 9])
@pytest.mark.parametrize("grown", [0, 3])
def test_outside_the_mask_every_byte_is_the_pictures(blur: int, grown: int) -> None:
    picture = noise(64, 64)
    canvas = canvas_of(picture, (64, 64), mask_of(64, 64, slice(20, 40), slice(8, 30)), blur=blur, grow=grown)
    drawn = 255 - picture.pixels
    written = canvas.finish(drawn)
    outside = np.ones((64, 64), bool)
    outside[20 - grown : 40 + grown, 8 - grown : 30 + grown] = False
    np.testing.assert_array_equal(written[outside], picture.pixels[outside])
    assert (written[25:35, 13:25] != picture.pixels[25:35, 13:25]).any()
    if not blur:
        np.testing.assert_array_equal(written[~outside], drawn[~outside])


def test_of_another_size_bytes_are_those_of_the_resized_picture() -> None:
    picture = noise(60, 90)
    canvas = canvas_of(picture, (64, 96), mask_of(60, 90, slice(0, 30), slice(0, 45)), blur=0)
    written = canvas.finish(np.zeros((64, 96, 3), np.uint8))
    np.testing.assert_array_equal(written[33:, :], fit(picture.pixels, (64, 96), "crop")[33:, :])
    assert (written[:31, :47] == 0).all()


def test_without_a_mask_what_was_drawn_is_written() -> None:
    canvas = canvas_of(noise(60, 90), (64, 96))
    drawn = noise(64, 96).pixels
    np.testing.assert_array_equal(canvas.finish(drawn), drawn)
    assert canvas.mask is None


def test_inverting_swaps_inside_and_outside() -> None:
    picture, mask = noise(32, 32), mask_of(32, 32, slice(0, 16), slice(0, 32))
    written = canvas_of(picture, (32, 32), mask, invert=True, blur=0).finish(np.zeros((32, 32, 3), np.uint8))
    np.testing.assert_array_equal(written[:16], picture.pixels[:16])
    assert (written[16:] == 0).all()


def test_margins_repeat_the_edge_and_are_painted() -> None:
    picture = noise(32, 32)
    canvas = canvas_of(picture, (48, 56), margins=(8, 16, 16, 0), blur=0)
    np.testing.assert_array_equal(canvas.image[16:, 8:40], picture.pixels)
    np.testing.assert_array_equal(canvas.image[:16, 8:40], np.broadcast_to(picture.pixels[0], (16, 32, 3)))
    written = canvas.finish(np.full((48, 56, 3), 9, np.uint8))
    np.testing.assert_array_equal(written[16:, 8:40], picture.pixels)
    written[16:, 8:40] = 9
    assert (written == 9).all()


def test_the_masked_part_alone_is_worked_at_full_size_and_put_back() -> None:
    picture = noise(200, 300)
    mask = mask_of(200, 300, slice(100, 120), slice(50, 70))
    canvas = canvas_of(picture, (64, 64), mask, only=True, padding=6, blur=0)
    assert canvas.frame.box == (94, 44, 126, 76)
    assert canvas.image.shape == (64, 64, 3)
    written = canvas.finish(np.full((64, 64, 3), 9, np.uint8))
    assert (written[100:120, 50:70] == 9).all()
    outside = np.ones((200, 300), bool)
    outside[100:120, 50:70] = False
    np.testing.assert_array_equal(written[outside], picture.pixels[outside])


def test_a_mask_of_another_size_is_scaled_and_one_of_another_shape_refused() -> None:
    picture = noise(64, 96)
    canvas = canvas_of(picture, (64, 96), mask_of(32, 48, slice(0, 16), slice(0, 48)), blur=0)
    assert (canvas.mask[:31] == 255).all()
    assert (canvas.mask[33:] == 0).all()
    with pytest.raises(UsageError, match=r"is 64x64 and a\.png is 96x64: they have not the same shape"):
        canvas_of(picture, (64, 96), mask_of(64, 64, slice(0, 16), slice(0, 16)))


@pytest.mark.parametrize("only", [False, True])
def test_scaling_leaves_no_trace_of_white_on_black_nor_of_black_on_white(only: bool) -> None:
    picture, half = noise(64, 1000), mask_of(64, 1000, slice(None), slice(500, None))
    canvas = canvas_of(picture, (64, 1024), half, resize="stretch", only=only, padding=500)
    assert set(np.unique(canvas.mask)) == {0, 255}
    coarse = canvas_of(noise(64, 1024), (64, 1024), mask_of(4, 64, slice(None), slice(32, None)), only=only)
    between = np.setdiff1d(np.unique(coarse.mask), [0, 255])
    assert len(between) > 8
    assert between.min() >= 8
    assert between.max() <= 247


def test_a_dot_that_is_lost_at_the_size_of_drawing_is_an_error_of_that_picture() -> None:
    picture, dot = noise(1000, 1000), mask_of(1000, 1000, slice(500, 501), slice(500, 501))
    with pytest.raises(PictureError, match=r"mask\.png leaves nothing to be repainted at 64x64: what it marks is too"):
        canvas_of(picture, (64, 64), dot)
    assert canvas_of(picture, (64, 64), dot, only=True, padding=8).mask.any()


def test_black_and_white_masks() -> None:
    picture = noise(16, 16)
    black, white = mask_of(16, 16, slice(0, 0), slice(0, 0)), mask_of(16, 16, slice(0, 16), slice(0, 16))
    with pytest.raises(UsageError, match=r"mask\.png is black everywhere, so nothing would be repainted"):
        canvas_of(picture, (16, 16), black)
    with pytest.raises(UsageError, match="white everywhere"):
        canvas_of(picture, (16, 16), white, invert=True)
    with pytest.raises(UsageError, match=r"mask\.png, scaled to 16x16, is black everywhere"):
        canvas_of(picture, (16, 16), mask_of(512, 512, slice(7, 8), slice(7, 8)))
    drawn = noise(16, 16).pixels
    for mask, invert in ((white, False), (black, True)):
        np.testing.assert_array_equal(canvas_of(picture, (16, 16), mask, invert=invert).finish(drawn), drawn)


def test_no_file_is_touched(tmp_path: Path) -> None:
    picture, mask = noise(32, 32), mask_of(32, 32, slice(0, 16), slice(0, 32))
    before = picture.pixels.copy(), mask.pixels.copy()
    canvas_of(picture, (32, 32), mask, margins=(8, 8, 8, 8), grow=2).finish(noise(32, 32).pixels)
    np.testing.assert_array_equal(picture.pixels, before[0])
    np.testing.assert_array_equal(mask.pixels, before[1])
