from collections.abc import Sequence
from pathlib import Path

import pytest
from support_files import published_shapes, sparse_file
from support_tiny import tiny_config, tiny_tensors

from sdxl_core.checkpoints.check import check_keys, check_model, first_stage_prefix
from sdxl_core.checkpoints.header import Header, read_header
from sdxl_core.errors import CheckpointError
from sdxl_core.presets import load_preset

Shapes = dict[str, Sequence[int]]
POSITIONS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
SCALE = "conditioner.embedders.1.model.logit_scale"
OUT = "model.diffusion_model.out.2.bias"


@pytest.fixture(scope="module")
def tiny() -> Shapes:
    shapes = {key: tuple(tensor.shape) for key, tensor in tiny_tensors().items() if key != POSITIONS}
    return {**shapes}


def file_of(folder: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> Header:
    return read_header(sparse_file(folder / "model.safetensors", shapes, metadata=metadata))


def test_the_right_file_passes_and_what_is_passed_over_is_counted(tmp_path: Path, tiny: Shapes) -> None:
    extra: Shapes = {
        "model_ema.decay": [],
        "model_ema.outweight": [3],
        POSITIONS: [1, 77],
        "sqrt_alphas_cumprod": [1000],
    }
    passed_over = check_model(file_of(tmp_path, tiny | extra), tiny_config(), tiny)
    assert passed_over == {
        "averaged weights of training": 2,
        "token positions, always 0 to 76": 1,
        "noise table": 1,
    }


def test_wrong_keys_are_counted_and_named(tmp_path: Path, tiny: Shapes) -> None:
    first = [key for key in tiny if key.startswith("first_stage_model.")]
    wrong = {key: shape for key, shape in tiny.items() if key not in first[:5]}
    wrong |= {OUT: [9], "model.diffusion_model.bogus": [1]}
    with pytest.raises(CheckpointError) as caught:
        check_model(file_of(tmp_path, wrong), tiny_config(), tiny)
    message = caught.value.message
    assert f"5 missing ({', '.join(first[:3])}, ...)" in message
    assert "1 unexpected (model.diffusion_model.bogus)" in message
    assert f"1 mis-shaped ({OUT} [9] instead of [4])" in message
    assert caught.value.exit_code == 4


def test_a_refiner_is_no_base(tmp_path: Path) -> None:
    header = file_of(tmp_path, {**published_shapes("refiner")})
    with pytest.raises(CheckpointError, match="needs an SDXL base, this is an SDXL refiner") as caught:
        check_model(header, load_preset("sdxl-base-1.0", user=tmp_path).model, {})
    assert "sdxl-refiner-1.0" in (caught.value.hint or "")


def test_a_lora_is_no_model(tmp_path: Path) -> None:
    header = file_of(tmp_path, {"lora_unet_x.lora_down.weight": [8, 640]})
    with pytest.raises(CheckpointError, match="this is a LoRA") as caught:
        check_model(header, tiny_config(), {})
    assert "give the model itself" in (caught.value.hint or "")


def test_all_that_makes_it_another_size_is_said_in_one_line(tmp_path: Path, tiny: Shapes) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_model(file_of(tmp_path, tiny), load_preset("sdxl-base-1.0", user=tmp_path).model, {})
    assert "model_channels 32 instead of 320" in caught.value.message
    assert "context_dim 96 instead of 2048" in caught.value.message


def test_markers_of_the_prediction_are_no_stray_tensors(tmp_path: Path, tiny: Shapes) -> None:
    markers: Shapes = {"v_pred": [], "ztsnr": [], "edm_mean": [4], "edm_std": [4]}
    markers |= {"edm_vpred.sigma_max": [], "edm_vpred.sigma_min": []}
    passed_over = check_model(file_of(tmp_path, tiny | markers), tiny_config(), tiny)
    assert passed_over == {"marker of the prediction type": 6}


def test_a_first_stage_that_is_read_elsewhere_may_be_in_the_file_or_not(tmp_path: Path, tiny: Shapes) -> None:
    network = {key: shape for key, shape in tiny.items() if not key.startswith("first_stage_model.")}
    check_model(file_of(tmp_path, network), tiny_config(), network)
    passed_over = check_model(file_of(tmp_path, tiny), tiny_config(), network, unused=["first_stage_model."])
    assert passed_over == {"not used from this file": len(tiny) - len(network)}
    with pytest.raises(CheckpointError, match="unexpected"):
        check_model(file_of(tmp_path, tiny), tiny_config(), network)


def test_converted_files_may_lack_the_scale_that_no_picture_needs(tmp_path: Path, tiny: Shapes) -> None:
    assert SCALE in tiny
    check_model(file_of(tmp_path, {k: s for k, s in tiny.items() if k != SCALE}), tiny_config(), tiny)


def test_only_keys_under_the_prefixes_are_unexpected(tmp_path: Path) -> None:
    header = file_of(tmp_path, {"a.x": [1], "b.y": [1]})
    assert check_keys(header, {"a.x": [1]}, prefixes=["a."]) == {}
    with pytest.raises(CheckpointError, match="1 unexpected"):
        check_keys(header, {"a.x": [1]})


def test_finds_the_first_stage_with_and_without_its_prefix(tmp_path: Path, tiny: Shapes) -> None:
    prefix = "first_stage_model."
    bare: Shapes = {key.removeprefix(prefix): shape for key, shape in tiny.items() if key.startswith(prefix)}
    assert first_stage_prefix(file_of(tmp_path, tiny)) == prefix
    assert first_stage_prefix(file_of(tmp_path, bare)) == ""
    with pytest.raises(CheckpointError, match="no VAE in the original layout: this is a LoRA"):
        first_stage_prefix(file_of(tmp_path, {"x.lora_up.weight": [1]}))
