"""Layers over strips against the same layers over the whole."""

import pytest
import torch
from support_networks import randn
from torch import Tensor, nn

from sdxl_core.ops.strips import Known, activated, added, convolved, doubled, drain, forked, measured, regrouped

CUTS = [(7,), (1,) * 7, (3, 3, 1), (1, 5, 1)]


def joined(strips: object) -> Tensor:
    return torch.cat(list(strips), dim=2)  # type: ignore[call-overload]


@pytest.mark.parametrize("rows", CUTS, ids=str)
@torch.no_grad()
def test_convolutions(rows: tuple[int, ...]) -> None:
    x = randn(2, 3, 7, 6).double()
    same = nn.Conv2d(3, 5, 3, padding=1).double()
    halving = nn.Conv2d(3, 5, 3, stride=2).double()
    strips = x.split(rows, dim=2)
    torch.testing.assert_close(joined(convolved(iter(strips), same)), same(x))
    twice = nn.functional.interpolate(x, scale_factor=2.0)
    torch.testing.assert_close(joined(doubled(iter(strips), same)), same(twice))
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(joined(convolved(iter(strips), halving, beyond=(0, 1))), halving(padded))


@pytest.mark.parametrize("rows", CUTS, ids=str)
@torch.no_grad()
def test_a_norm_is_measured_first_and_then_applied(rows: tuple[int, ...]) -> None:
    x = randn(2, 6, 7, 5).double() * 3 + 40
    norm = nn.GroupNorm(3, 6).double()
    norm.weight.copy_(randn(6, seed=1))
    norm.bias.copy_(randn(6, seed=2))
    known: Known = {}
    assert list(activated(iter(x.split(rows, dim=2)), norm, known)) == []
    torch.testing.assert_close(joined(activated(iter(x.split(rows, dim=2)), norm, known)), nn.functional.silu(norm(x)))


def test_an_ended_walk_measures_nothing() -> None:
    known: Known = {}
    drain(measured(iter([]), nn.GroupNorm(1, 2), known))
    assert known == {}


@pytest.mark.parametrize("strip_bytes", [1, 2 * 4 * 3 * 5, 100, 10**6])
@pytest.mark.parametrize("rows", CUTS, ids=str)
def test_regrouping_and_adding_lose_no_row(rows: tuple[int, ...], strip_bytes: int) -> None:
    x = randn(1, 3, 7, 5)
    strips = x.split(rows, dim=2)
    again = list(regrouped(iter(strips), strip_bytes))
    assert torch.equal(torch.cat(again, dim=2), x)
    assert len({strip.shape[2] for strip in again[:-1]}) <= 1
    assert all(strip.nbytes <= max(strip_bytes, 60) for strip in again)
    first, second = forked(iter(strips))
    assert torch.equal(joined(added(regrouped(first, 60), second, strip_bytes)), 2 * x)
