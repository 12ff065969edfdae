"""Masks: nothing outside is touched, nothing inside is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sdxl_core.masks import bounds, feather, grow, paste, to_cells, widen
from sdxl_core.source_pictures import Pixels

MASKS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 0, 100, 255]))


def square(side: int = 32, low: int = 10, high: int = 20) -> Pixels:
    mask = np.zeros((side, side), np.uint8)
    mask[low:high, low:high] = 255
    return mask


@given(MASKS, st.integers(0, 5))
def test_growing_is_the_highest_value_around(mask: Pixels, pixels: int) -> None:
    expected = ndimage.maximum_filter(mask, 2 * pixels + 1, mode="constant")
    np.testing.assert_array_equal(grow(mask, pixels), expected)


@given(MASKS, st.integers(0, 6))
def test_a_feather_is_zero_just_where_the_mask_is(mask: Pixels, pixels: int) -> None:
    alpha = feather(mask, pixels)
    np.testing.assert_array_equal(alpha == 0, mask == 0)
    if pixels == 0:
        assert set(np.unique(alpha)) <= {0, 255}


@given(MASKS, st.integers(1, 6))
def test_a_feather_rises_with_the_distance_to_what_stays(mask: Pixels, pixels: int) -> None:
    if not (mask == 0).any():
        assert (feather(mask, pixels) == 255).all()
        return
    distance = ndimage.distance_transform_cdt(mask > 0, metric="chessboard")
    expected = np.round(255 * np.minimum(distance, pixels + 1) / (pixels + 1))
    assert np.abs(feather(mask, pixels).astype(int) - expected).max() <= 1


def test_cells_are_free_when_one_pixel_is() -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[7, 8], mask[15, 23] = 255, 51
    np.testing.assert_allclose(to_cells(mask, 8), [[0, 1, 0], [0, 0, 0.2]])


@given(arrays(np.uint8, (5, 6)))
def test_pasting_keeps_bytes_at_both_ends_of_alpha(alpha: Pixels) -> None:
    rng = np.random.default_rng(0)
    below, above = rng.integers(0, 256, (2, 5, 6, 3), np.uint8)
    mixed = paste(below, above, alpha)
    np.testing.assert_array_equal(mixed[alpha == 0], below[alpha == 0])
    np.testing.assert_array_equal(mixed[alpha == 255], above[alpha == 255])
    exact = below + (above.astype(float) - below) * alpha[..., None] / 255
    assert np.abs(mixed - exact).max() <= 0.5 + 1e-6


def test_bounds() -> None:
    assert bounds(square()) == (10, 10, 20, 20)
    assert bounds(np.zeros((4, 6), np.uint8)) == (0, 0, 4, 6)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 20),
    st.floats(0.25, 4),
    st.integers(0, 1000),
)
def test_a_widened_box_holds_the_box_and_lies_in_the_picture(
    within: tuple[int, int], padding: int, aspect: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ends = [np.sort(rng.choice(side + 1, 2, replace=False)) for side in within]
    (top, bottom), (left, right) = ((int(a), int(b)) for a, b in ends)
    wide = widen((top, left, bottom, right), padding, aspect, within)
    assert 0 <= wide[0] <= top < bottom <= wide[2] <= within[0]
    assert 0 <= wide[1] <= left < right <= wide[3] <= within[1]


@pytest.mark.parametrize(("aspect", "box"), [(1, (40, 30, 60, 50)), (2, (40, 20, 60, 60)), (0.5, (30, 30, 70, 50))])
def test_a_box_takes_the_shape_that_is_worked_at(aspect: float, box: tuple[int, int, int, int]) -> None:
    assert widen((45, 35, 55, 45), 5, aspect, (100, 100)) == box
