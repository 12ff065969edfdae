import math

import pytest
import torch

from sdxl_core.config import DenoiserConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.sigma_sampling import DiscreteSampling, EdmSampling

TABLE = Denoiser(DenoiserConfig()).table


def test_discrete_levels_are_those_of_the_table_and_all_as_likely() -> None:
    n = 100_000
    drawn = DiscreteSampling(TABLE)(n, torch.Generator().manual_seed(0))
    index = torch.searchsorted(TABLE, drawn)
    assert torch.equal(TABLE[index], drawn)
    assert drawn.dtype == torch.float32
    assert index.min() == 0
    assert index.max() == 999
    counts = torch.bincount(index, minlength=1000).double()
    chi_square = float(((counts - n / 1000) ** 2 / (n / 1000)).sum())
    # 999 degrees of freedom: 4.5 standard deviations around the mean, wrong once in 150 000 seeds.
    assert abs(chi_square - 999) < 4.5 * math.sqrt(2 * 999)


def test_the_refiner_sees_the_first_levels_only() -> None:
    drawn = DiscreteSampling(TABLE, 0, 200)(5000, torch.Generator().manual_seed(0))
    assert drawn.min() == TABLE[0]
    assert drawn.max() == TABLE[199]


@pytest.mark.parametrize(("first", "last"), [(-1, 10), (5, 5), (10, 5), (0, 1001), (1000, None)])
def test_a_range_outside_the_table_is_refused(first: int, last: int | None) -> None:
    with pytest.raises(ValueError, match="no range of 1000 levels"):
        DiscreteSampling(TABLE, first, last)


def test_edm_levels_are_log_normal() -> None:
    n = 100_000
    logs = EdmSampling()(n, torch.Generator().manual_seed(0)).log().double()
    # 4.5 standard errors: wrong once in 150 000 seeds.
    assert abs(float(logs.mean()) + 1.2) < 4.5 * 1.2 / math.sqrt(n)
    assert abs(float(logs.std()) - 1.2) < 4.5 * 1.2 / math.sqrt(2 * n)


@pytest.mark.parametrize("sampling", [DiscreteSampling(TABLE), EdmSampling(0.0, 1.0)])
def test_draws_repeat_with_the_seed(sampling: DiscreteSampling | EdmSampling) -> None:
    first, again, other = (sampling(8, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (8,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
