import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_tiny import tiny_config

from sdxl_core.config import ModelConfig
from sdxl_core.errors import UsageError
from sdxl_core.resolutions import PUBLISHED, nearest_resolution, resolutions


def of_area(height: int, width: int) -> ModelConfig:
    return tiny_config().model_copy(update={"native_size": (height, width)})


def test_the_published_sizes_are_forty_multiples_of_64_of_about_one_megapixel() -> None:
    assert len(set(PUBLISHED)) == len(PUBLISHED) == 40
    assert all(h % 64 == 0 and w % 64 == 0 for h, w in PUBLISHED)
    assert all(0.88 <= h * w / 1024**2 <= 1.03 for h, w in PUBLISHED)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(1.0, (1024, 1024)), (16 / 9, (768, 1344)), (9 / 16, (1344, 768)), (3 / 2, (832, 1216)), (21 / 9, (640, 1536))],
)
def test_common_shapes_get_their_usual_size(aspect: float, size: tuple[int, int]) -> None:
    assert nearest_resolution(aspect, of_area(1024, 1024)) == size


@given(st.sampled_from([128, 192, 256, 512, 768, 1024]))
def test_sizes_of_another_area_keep_area_and_divide_by_the_network(side: int) -> None:
    for h, w in resolutions(of_area(side, side)):
        assert h % 32 == 0
        assert w % 32 == 0
        assert 0.6 <= h * w / side**2 <= 1.4
    assert (side, side) in resolutions(of_area(side, side))


@given(st.floats(0.05, 20))
def test_no_other_size_is_nearer(aspect: float) -> None:
    model = of_area(1024, 1024)
    h, w = nearest_resolution(aspect, model)
    assert all(
        abs(math.log(w / h / aspect)) <= abs(math.log(other_w / other_h / aspect)) for other_h, other_w in PUBLISHED
    )


@pytest.mark.parametrize("aspect", [0.0, -1.0, math.nan, math.inf])
def test_no_shape_is_refused(aspect: float) -> None:
    with pytest.raises(UsageError, match="is no shape"):
        nearest_resolution(aspect, of_area(1024, 1024))
