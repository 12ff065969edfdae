import itertools

import pytest
import torch

from sdxl_core.types import Conditioning


def conditioning(seed: int, concat: bool) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    crossattn, vector = torch.randn(1, 7, 3, generator=generator), torch.randn(1, 5, generator=generator)
    return Conditioning(crossattn, vector, torch.randn(1, 2, 4, 6, generator=generator) if concat else None)


@pytest.mark.parametrize("concat", [True, False])
def test_cat_joins_every_part_along_the_batch(concat: bool) -> None:
    first, second = conditioning(0, concat), conditioning(1, concat)
    joined = Conditioning.cat([first, second])
    assert torch.equal(joined.crossattn, torch.cat([first.crossattn, second.crossattn]))
    assert torch.equal(joined.vector, torch.cat([first.vector, second.vector]))
    if first.concat is None or second.concat is None:
        assert joined.concat is None
    else:
        assert joined.concat is not None
        assert torch.equal(joined.concat, torch.cat([first.concat, second.concat]))


def test_cat_refuses_a_concat_part_on_one_side_only() -> None:
    with pytest.raises(ValueError, match="some have none"):
        Conditioning.cat([conditioning(0, True), conditioning(1, False)])


def test_to_changes_every_part() -> None:
    moved = conditioning(0, True).to(dtype=torch.float64)
    assert moved.concat is not None
    assert {moved.crossattn.dtype, moved.vector.dtype, moved.concat.dtype} == {torch.float64}
    assert conditioning(0, False).to("cpu").concat is None


@pytest.mark.parametrize("words", list(itertools.product([True, False], repeat=4)))
def test_words_that_are_left_out_are_zeros_in_the_end(words: tuple[bool, ...]) -> None:
    rows = [conditioning(seed, False) if told else blank(seed) for seed, told in enumerate(words)]
    joined = Conditioning.cat([Conditioning.cat(rows[:2]), Conditioning.cat(rows[2:])])
    first = words.index(True) if any(words) else len(words)
    assert len(joined.crossattn) == len(words) - first  # none that could be left out is there
    whole = torch.cat([torch.zeros(first, 7, 3), joined.crossattn])
    expected = [row.crossattn if told else torch.zeros(1, 7, 3) for row, told in zip(rows, words, strict=True)]
    assert torch.equal(whole, torch.cat(expected))
    assert torch.equal(joined.vector, torch.cat([row.vector for row in rows]))


def blank(seed: int) -> Conditioning:
    return conditioning(seed, False).without_words()
