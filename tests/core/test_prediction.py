import pytest

from sdxl_core.config import DenoiserConfig
from sdxl_core.errors import UsageError
from sdxl_core.prediction import PREDICTIONS, predicting, prediction_name, resolve_prediction

BASE = DenoiserConfig(num_idx=500, linear_end=0.02)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_denoiser_of_every_kind_knows_its_name_and_keeps_the_betas(name) -> None:  # type: ignore[no-untyped-def]
    denoiser = predicting(BASE, name)
    assert prediction_name(denoiser) == name
    assert (denoiser.num_idx, denoiser.linear_end) == (500, 0.02)
    assert predicting(denoiser, name) == denoiser
    assert predicting(denoiser, "eps") == BASE


def test_numbers_belong_to_their_kind() -> None:
    flow = predicting(BASE, "flow", shift=2.5)
    assert flow.shift == 2.5
    assert predicting(flow, "flow") == flow
    assert predicting(flow, "v").shift == 1.0
    cosxl = predicting(BASE, "edm_v", sigma_min=0.01, sigma_max=100.0)
    assert (cosxl.sigma_min, cosxl.sigma_max) == (0.01, 100.0)
    assert predicting(cosxl, "edm").sigma_max is None
    with pytest.raises(UsageError, match="only flows have, and this model predicts v") as caught:
        predicting(BASE, "v", shift=2.0)
    assert "--prediction flow" in (caught.value.hint or "")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown prediction 'v_ztsn'; did you mean v_ztsnr") as caught:
        resolve_prediction("v_ztsn")
    assert "flow" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scaling": "eps", "zero_terminal_snr": "comfy"},
        {"scaling": "v", "shift": 2.0},
        {"scaling": "flow", "sigma_max": 10.0},
        {"scaling": "flow", "shift": 0.0},
        {"scaling": "edm", "sigma_min": -1.0},
    ],
    ids=str,
)
def test_a_preset_cannot_mix_kinds(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"need|greater than 0"):
        DenoiserConfig.model_validate(wrong)
