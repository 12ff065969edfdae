import pytest
import torch

from sdxl_core.diffusion.scaling import SCALINGS
from sdxl_core.diffusion.weighting import (
    WEIGHTINGS,
    edm_weighting,
    eps_weighting,
    flow_weighting,
    min_snr_weighting,
    unit_weighting,
    v_weighting,
)

SIGMA = torch.tensor([0.0292, 0.3, 1.0, 3.3, 14.6146], dtype=torch.float64)


@pytest.mark.parametrize(
    ("scaling", "weighting"),
    [
        ("eps", eps_weighting),
        ("v", v_weighting),
        ("edm", edm_weighting),
        ("edm_v", v_weighting),
        ("flow", flow_weighting),
    ],
)
def test_own_weighting_is_one_over_c_out_squared(scaling: str, weighting) -> None:  # type: ignore[no-untyped-def]
    torch.testing.assert_close(weighting(SIGMA), SCALINGS[scaling](SIGMA, 0.5).c_out ** -2)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("scaling", ["eps", "v"])
def test_min_snr_is_the_weight_of_the_paper_on_the_networks_own_loss(scaling: str, gamma: float) -> None:
    snr = SIGMA**-2
    of_paper = snr.clamp(max=gamma) / (snr if scaling == "eps" else snr + 1)
    on_x0 = of_paper / SCALINGS[scaling](SIGMA, 0.5).c_out ** 2
    torch.testing.assert_close(min_snr_weighting(SIGMA, gamma), on_x0)


def test_min_snr_never_exceeds_gamma() -> None:
    assert float(min_snr_weighting(SIGMA).max()) == 5.0
    assert float(min_snr_weighting(SIGMA, 0.001).min()) == 0.001


def test_unit_weighting_is_one() -> None:
    assert unit_weighting(SIGMA).tolist() == [1.0] * 5


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_weights_are_positive_and_one_a_level(name: str) -> None:
    weights = WEIGHTINGS[name](SIGMA.float())
    assert weights.shape == SIGMA.shape
    assert weights.dtype == torch.float32
    assert (weights > 0).all()
