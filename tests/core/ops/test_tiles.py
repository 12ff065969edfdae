"""Blending changes nothing where a network looks at nothing but its own pixel, and fades where it looks further."""

import pytest
import torch
from support_networks import randn
from torch import Tensor
from torch.nn.functional import interpolate

from sdxl_core.ops.tiles import blended


def enlarged(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (13, 4), (17, 17)])
@pytest.mark.parametrize(("tile", "overlap"), [(4, 0), (4, 1), (4, 3), (64, 16)])
def test_a_local_network_gives_its_whole(size: tuple[int, int], tile: int, overlap: int) -> None:
    x = randn(2, 3, *size)
    out = blended(enlarged, x, factor=2, tile=tile, overlap=overlap)
    torch.testing.assert_close(out, enlarged(x))


def test_every_tile_has_the_full_size_and_neighbours_fade_into_each_other() -> None:
    seen = []

    def numbered(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return torch.full_like(enlarged(x), len(seen))

    out = blended(numbered, randn(1, 1, 4, 10), factor=2, tile=6, overlap=2)
    assert seen == [(4, 6), (4, 6)]
    row = out[0, 0, 3]
    assert row[:8].tolist() == [1.0] * 8
    assert row[12:].tolist() == [2.0] * 8
    assert (row[8:12].diff() > 0).all()
