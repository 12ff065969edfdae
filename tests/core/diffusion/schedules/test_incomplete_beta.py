import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from sdxl_core.diffusion.schedules.incomplete_beta import beta_quantile, beta_share

SHAPES = [(0.6, 0.6), (0.5, 0.5), (1, 1), (2, 3), (0.1, 0.9), (5, 0.3), (30, 40), (0.05, 0.05), (100, 100)]


@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
def test_quantiles_and_shares_are_those_of_scipy(alpha: float, beta: float) -> None:
    for q in [0.0, 1e-6, 1e-3, *(k / 50 for k in range(1, 50)), 0.999, 1 - 1e-9, 1.0]:
        x = float(stats.beta.ppf(q, alpha, beta))
        assert beta_quantile(q, alpha, beta) == pytest.approx(x, abs=1e-13)
        assert beta_share(x, alpha, beta) == pytest.approx(float(special.betainc(alpha, beta, x)), abs=1e-12)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.05, 100), st.floats(0.05, 100))
def test_a_quantile_is_the_inverse_of_the_share(q: float, alpha: float, beta: float) -> None:
    x = beta_quantile(q, alpha, beta)
    assert 0 <= x <= 1
    # Where a hair's breadth of x holds a large share, as at an end of infinite density, x is right to the last bit.
    slack = abs(beta_share(x * (1 + 4e-16), alpha, beta) - beta_share(max(x * (1 - 4e-16) - 1e-300, 0), alpha, beta))
    assert beta_share(x, alpha, beta) == pytest.approx(q, abs=1e-12 + 4 * slack)


@settings(deadline=None)
@given(st.floats(1e-3, 0.5), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_mirrored_distribution_has_mirrored_quantiles(q: float, alpha: float, beta: float) -> None:
    assert beta_quantile(1 - q, beta, alpha) == pytest.approx(1 - beta_quantile(q, alpha, beta), abs=1e-9)
