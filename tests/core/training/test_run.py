import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support_tiny import tiny_config, tiny_tensors, write_preset, write_tiny_checkpoint
from support_training import train_config, write_image_folder

from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import CheckpointError, PresetError
from sdxl_core.training.config import DataConfig, DiffusionLossConfig, OptimizerConfig, TrainConfig
from sdxl_core.training.loop import LOG_FILE, step_generator
from sdxl_core.training.presets import list_train_presets, load_train_preset
from sdxl_core.training.run import export, prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    write_preset(root / "tiny.toml", tiny_config())
    write_image_folder(root / "data")
    write_tiny_checkpoint(root / "init.safetensors")
    return root


def stage(place: Path, kind: str, **changes: object) -> TrainConfig:
    return train_config(kind, model=str(place / "tiny.toml"), **changes)


def _parameters(engine: Engine) -> list[torch.Tensor]:
    return [p for part in (engine.network, engine.conditioner, engine.first_stage) for p in part.parameters()]


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / LOG_FILE).read_text().splitlines()]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_autoencoder_learns_to_give_pictures_back(place: Path, tmp_path: Path) -> None:
    rates = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    trainer = prepare(stage(place, "autoencoder", steps=60, optimizer=rates), place / "data", tmp_path, device=CPU)
    before = trainer.stage.loss(0, step_generator(0, 0))[0].item()
    for _ in trainer.run():
        pass
    after = trainer.stage.loss(0, step_generator(0, 0))[0].item()
    assert after < 0.8 * before


def test_the_text_towers_learn_which_caption_is_whose(place: Path, tmp_path: Path) -> None:
    config = stage(
        place, "contrastive", steps=30, data=DataConfig(buckets=((64, 64),), batch_size=12),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2),
    )  # fmt: skip
    trainer = prepare(config, place / "data", tmp_path, device=CPU)
    for _ in trainer.run():
        pass
    last = json.loads((tmp_path / LOG_FILE).read_text().splitlines()[-1])
    # Four colours, so a guess is right in a quarter of the cases.
    assert last["right_0"] > 0.9
    assert last["right_1"] > 0.9


def test_the_network_learns_and_frozen_parts_stay_as_they_were(place: Path, tmp_path: Path) -> None:
    config = stage(
        place, "diffusion", steps=60, optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2),
        loss=DiffusionLossConfig(kind="diffusion", weighting="min_snr", offset_noise=0.05),
    )  # fmt: skip
    init = [place / "init.safetensors"]
    trainer = prepare(config, place / "data", tmp_path, init=init, device=CPU)
    for _ in trainer.run():
        pass
    first, last = losses(tmp_path)[:10], losses(tmp_path)[-10:]
    assert mean(last) < 0.8 * mean(first)

    made = tmp_path / "made.safetensors"
    export(trainer, made, init=init, dtype=torch.float32, metadata={"licence": "Apache-2.0"})
    before, after = tiny_tensors(), load_file(made)
    assert set(after) == set(before)
    for key, value in after.items():
        if key.startswith("model.diffusion_model."):
            continue
        assert torch.equal(value, before[key]), key
    changed = [k for k in after if k.startswith("model.") and not torch.equal(after[k], before[k])]
    assert len(changed) > 0.9 * len([k for k in after if k.startswith("model.")])
    with safe_open(made, "pt") as file:
        assert file.metadata() == {"licence": "Apache-2.0"}
    # The file is one that the engine takes, with the averaged weights in it.
    engine = load_engine(tiny_config(), made, device="cpu", dtype="float32")
    name = "input_blocks.0.0.weight"
    averaged = trainer.ema.shadow[f"model.diffusion_model.{name}"]
    assert torch.equal(engine.network.state_dict()[name], averaged)


@pytest.mark.parametrize("kind", ["autoencoder", "contrastive", "diffusion"])
def test_every_stage_runs_in_bfloat16_and_keeps_float32_weights(place: Path, tmp_path: Path, kind: str) -> None:
    config = stage(place, kind, steps=3, precision="bfloat16")
    trainer = prepare(config, place / "data", tmp_path, init=[place / "init.safetensors"], device=CPU)
    for done in trainer.run():
        assert 0 < done.loss < 10
    assert {weight.dtype for weight in trainer.weights.values()} == {torch.float32}


def test_a_network_can_take_its_other_parts_from_another_models_file(place: Path, tmp_path: Path) -> None:
    refiner = tiny_config("refiner").model_copy(update={"parts_from": str(place / "tiny.toml")})
    preset = write_preset(tmp_path / "refiner.toml", refiner)
    loss = DiffusionLossConfig(kind="diffusion", index_range=(0, 200))
    config = train_config("diffusion", model=str(preset), steps=3, loss=loss)
    init = [place / "init.safetensors"]
    trainer = prepare(config, place / "data", tmp_path / "run", init=init, device=CPU)
    for _ in trainer.run():
        pass
    export(trainer, tmp_path / "refiner.safetensors", init=init, dtype=torch.float32, metadata={})
    assert set(load_file(tmp_path / "refiner.safetensors")) == {
        key for key in tiny_tensors("refiner") if key.startswith("model.diffusion_model.")
    }
    # And it runs from there: the same weights as in a file of its own give the same prediction.
    write_tiny_checkpoint(tmp_path / tiny_config().file.name)
    borrowing = load_engine(refiner, tmp_path / "refiner.safetensors", device=CPU, dtype="float32")
    own = load_file(tmp_path / "refiner.safetensors")
    for key, value in tiny_tensors("base").items():
        own |= {key: value} if key.startswith("first_stage_model.") else {}
        if key.startswith("conditioner.embedders.1."):
            own[key.replace("embedders.1", "embedders.0")] = value
    save_file(own, tmp_path / "whole.safetensors")
    whole = load_engine(tiny_config("refiner"), tmp_path / "whole.safetensors", device=CPU, dtype="float32")
    for mine, theirs in zip(_parameters(borrowing), _parameters(whole), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / tiny_config().file.name).unlink()
    with pytest.raises(CheckpointError, match=r"tiny_base\.safetensors"):
        load_engine(refiner, tmp_path / "refiner.safetensors", device=CPU)


def test_latents_are_computed_once(place: Path, tmp_path: Path) -> None:
    config, init = stage(place, "diffusion", steps=3), [place / "init.safetensors"]
    prepare(config, place / "data", tmp_path, init=init, device=CPU)
    cache = tmp_path / "latents.safetensors"
    stamp = cache.stat().st_mtime_ns
    prepare(config, place / "data", tmp_path, init=init, device=CPU)
    assert cache.stat().st_mtime_ns == stamp
    # A picture drawn anew and another autoencoder have other latents.
    picture = place / "data" / "red-0.png"
    os.utime(picture, ns=(stamp, picture.stat().st_mtime_ns + 1))
    prepare(config, place / "data", tmp_path, init=init, device=CPU)
    assert cache.stat().st_mtime_ns != stamp
    stamp = cache.stat().st_mtime_ns
    other = write_tiny_checkpoint(tmp_path / "other.safetensors", seed=1)
    prepare(config, place / "data", tmp_path, init=[other], device=CPU)
    assert cache.stat().st_mtime_ns != stamp


def test_a_share_of_captions_is_dropped_from_all_towers_at_once(place: Path, tmp_path: Path) -> None:
    loss = DiffusionLossConfig(kind="diffusion", caption_dropout=0.3)
    trainer = prepare(
        stage(place, "diffusion", loss=loss), place / "data", tmp_path, init=[place / "init.safetensors"], device=CPU
    )
    cond = trainer.stage.condition(torch.arange(16).repeat(32), torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    blank = (cond.crossattn == 0).flatten(1).all(1)
    pooled = (cond.vector[:, :64] == 0).all(1)
    assert torch.equal(blank, pooled)
    assert not (cond.vector[:, 64:] == 0).all(1).any()  # sizes stay
    # Binomial of 512: five standard deviations are 0.10.
    assert blank.float().mean().item() == pytest.approx(0.3, abs=0.1)


def test_the_network_cannot_be_trained_before_the_autoencoder(place: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="first_stage_model") as error:
        prepare(stage(place, "diffusion"), place / "data", tmp_path, device=CPU)
    assert "--init" in (error.value.hint or "")


def test_an_init_file_of_another_shape_is_refused(place: Path, tmp_path: Path) -> None:
    other = tiny_config().model_copy(update={"first_stage": tiny_config().first_stage.model_copy(update={"ch": 64})})
    preset = write_preset(tmp_path / "other.toml", other)
    with pytest.raises(CheckpointError, match="tensors are not the model's: 174 mis-shaped"):
        prepare(
            train_config("diffusion", model=str(preset)),
            place / "data", tmp_path / "run", init=[place / "init.safetensors"], device=CPU,
        )  # fmt: skip


def test_shipped_training_presets_are_valid() -> None:
    assert set(list_train_presets()) >= {"micro", "micro-autoencoder", "micro-text"}
    for name in list_train_presets():
        assert load_train_preset(name).name == name


def test_an_unknown_training_preset_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PresetError, match="micro-text"):
        load_train_preset("micro-txt")


def test_a_bad_key_is_named(tmp_path: Path) -> None:
    text = (list_train_presets()["micro"]).read_text().replace("batch_size", "batchsize")
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(PresetError, match=r"data\.batchsize.*batch_size"):
        load_train_preset(str(tmp_path / "bad.toml"))
