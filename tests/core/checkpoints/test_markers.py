import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_tiny import tiny_config
from torch import Tensor

from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.markers import Markers, adapt_model, named_prediction, read_markers
from sdxl_core.errors import CheckpointError, UsageError
from sdxl_core.prediction import prediction_name

MEAN, STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)
NOTHING = torch.zeros(0)
ONE = torch.ones(())


def markers_of(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Markers:
    """Of a file that safetensors' own writer made."""
    path = folder / "x.safetensors"
    save_file({"weight": torch.ones(3), **{key: tensor.clone() for key, tensor in tensors.items()}}, path, metadata)
    return read_markers(read_header(path))


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "reason"),
    [
        ({}, {}, None, ""),
        ({"v_pred": NOTHING}, {}, "v", "has v_pred"),
        ({"v_pred": ONE, "ztsnr": ONE}, {}, "v_ztsnr", "has v_pred and ztsnr"),
        ({"ztsnr": ONE}, {}, None, ""),
        ({}, {"modelspec.prediction_type": "epsilon"}, "eps", "modelspec.prediction_type is epsilon"),
        ({}, {"modelspec.prediction_type": "V"}, "v", "modelspec.prediction_type is v"),
        ({"ztsnr": ONE}, {"modelspec.prediction_type": "v"}, "v_ztsnr", "is v and ztsnr"),
        ({"v_pred": ONE}, {"modelspec.prediction_type": "epsilon"}, "v", "has v_pred"),
        ({}, {"modelspec.prediction_type": "something new"}, None, ""),
    ],
)
def test_says_what_the_file_says(
    tmp_path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], prediction: str | None, reason: str
) -> None:
    found = markers_of(tmp_path, tensors, metadata)
    assert found.prediction == prediction
    assert reason in found.reason
    assert bool(found.reason) == (prediction is not None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reads_the_numbers_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    mean, std = torch.tensor(MEAN).to(dtype), torch.tensor(STD).to(dtype).view(1, 4, 1, 1)
    found = markers_of(tmp_path, {"edm_mean": mean, "edm_std": std, "v_pred": ONE})
    assert found.prediction == "edm"
    assert found.latent_mean == tuple(mean.double().tolist())
    assert found.latent_std == tuple(std.double().flatten().tolist())
    low, high = torch.tensor(0.002).to(dtype), torch.tensor([120.0]).to(dtype)
    found = markers_of(tmp_path, {"edm_vpred.sigma_min": low, "edm_vpred.sigma_max": high})
    assert (found.prediction, found.sigma_min, found.sigma_max) == ("edm_v", float(low), 120.0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"edm_mean": torch.ones(4)}, "edm_std is missing"),
        ({"edm_mean": torch.ones(4), "edm_std": torch.zeros(4)}, "no mean and deviation of latents"),
        ({"edm_mean": torch.ones(4), "edm_std": torch.ones(3)}, "no mean and deviation of latents"),
        ({"edm_mean": torch.ones(4), "edm_std": torch.full((4,), float("nan"))}, "not all finite"),
        ({"edm_mean": torch.ones(99), "edm_std": torch.ones(99)}, "edm_mean is 99 numbers of F32, no marker"),
        ({"edm_vpred.sigma_max": torch.ones(2)}, "no noise level"),
        ({"edm_vpred.sigma_max": -ONE}, "no noise level"),
        ({"edm_vpred.sigma_max": ONE.long()}, "1 numbers of I64, no marker"),
        ({"edm_vpred.sigma_max": ONE, "edm_vpred.sigma_min": 2 * ONE}, "not above its edm_vpred.sigma_min 2.0"),
    ],
)
def test_numbers_that_cannot_be_true(tmp_path: Path, tensors: Mapping[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        markers_of(tmp_path, tensors)
    assert message in caught.value.message
    assert "x.safetensors" in caught.value.message


def test_a_model_is_what_was_asked_for_else_what_its_file_says_else_what_its_preset_says() -> None:
    model = tiny_config()
    assert adapt_model(model, Markers()) == (model, "as preset tiny-base says")
    marked = Markers("v_ztsnr", "has v_pred and ztsnr")
    adapted, reason = adapt_model(model, marked)
    assert (prediction_name(adapted.denoiser), reason) == ("v_ztsnr", "the file has v_pred and ztsnr")
    adapted, reason = adapt_model(model, marked, "eps")
    assert (adapted, reason) == (model, "as asked for")
    flow, _ = adapt_model(model, Markers(), "flow", shift=2.5)
    assert (flow.denoiser.scaling, flow.denoiser.shift) == ("flow", 2.5)
    assert adapt_model(flow, Markers(), shift=3.0)[0].denoiser.shift == 3.0
    with pytest.raises(UsageError, match="only flows have"):
        adapt_model(model, marked, shift=2.0)


def test_a_model_takes_its_range_and_its_latents_from_the_file() -> None:
    model = tiny_config()
    cosxl, _ = adapt_model(model, Markers("edm_v", "has edm_vpred.*", sigma_min=0.01, sigma_max=100.0))
    assert (cosxl.denoiser.sigma_min, cosxl.denoiser.sigma_max) == (0.01, 100.0)
    marked = Markers("edm", "has edm_mean and edm_std", latent_mean=MEAN, latent_std=STD)
    for asked in (None, "eps"):  # what is predicted can be overruled, what the latents are cannot
        playground, _ = adapt_model(model, marked, asked)  # type: ignore[arg-type]
        stage = playground.first_stage
        assert (stage.scale_factor, stage.latent_mean, stage.latent_std) == (0.5, MEAN, STD)
    with pytest.raises(CheckpointError, match="statistics of 3 latent channels"):
        adapt_model(model, Markers("edm", "has edm_mean and edm_std", latent_mean=MEAN[:3], latent_std=STD[:3]))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("noobaiXLNAIXL_vPred10Version.safetensors", "v"),
        ("some-v-pred-0.6.safetensors", "v"),
        ("bigASP_v2.5.safetensors", "flow"),
        ("bigaspv25.safetensors", "flow"),
        ("NoobAI-RF-0.3.safetensors", "flow"),
        ("sunflower.safetensors", None),
        ("sd_xl_base_1.0.safetensors", None),
    ],
)
def test_a_name_can_only_hint(name: str, prediction: str | None) -> None:
    assert named_prediction(Path("v-pred") / name) == prediction


def test_metadata_of_any_text_is_no_crash(tmp_path: Path) -> None:
    text = json.dumps({"a": "\x1b[31m" * 100})
    assert markers_of(tmp_path, {}, {"modelspec.prediction_type": text}) == Markers()


def test_cosxls_editing_model_is_shown_scaled_latents() -> None:
    model = tiny_config("edit")
    assert not adapt_model(model, Markers())[0].scale_shown
    assert adapt_model(model, Markers("edm_v", "has edm_vpred.*", sigma_min=0.002, sigma_max=120.0))[0].scale_shown
    assert adapt_model(model.model_copy(update={"scale_shown": True}), Markers())[0].scale_shown
