import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support_files import room_for
from support_training import train_config
from torch import Tensor, nn

from sdxl_core.errors import CheckpointError, NumericsError, OutputError, UsageError
from sdxl_core.training.config import OptimizerConfig, TrainConfig
from sdxl_core.training.loop import LOG_FILE, STATE_FILE, Trainer, learning_rate

CPU = torch.device("cpu")


class Regression:
    """Linear regression on batches that the step's generator draws."""

    def __init__(self, poison_at: int = -1) -> None:
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"part": nn.Linear(4, 1)})
        self.poison_at = poison_at

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        x = torch.randn(16, 4, generator=generator)
        error = self.modules["part"](x) - x.sum(1, keepdim=True)
        loss = error.square().mean()
        return (loss * float("nan") if step == self.poison_at else loss), {"worst": error.abs().max()}


def run(folder: Path, config: TrainConfig, stop_after: int | None = None) -> Trainer:
    folder.mkdir(exist_ok=True)
    trainer = Trainer(Regression(), config, folder, CPU)
    trainer.resume()
    steps = trainer.run()
    for done in steps:
        if done.step == stop_after:
            steps.close()  # type: ignore[attr-defined]
            break
    return trainer


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "elapsed_s"} for line in lines]


@pytest.mark.parametrize("stop_after", [3, 5, 7])
def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    config = train_config("autoencoder")
    whole = run(tmp_path / "whole", config)
    run(tmp_path / "parts", config, stop_after)
    parts = run(tmp_path / "parts", config)
    for name in whole.weights:
        assert torch.equal(whole.weights[name], parts.weights[name])
        assert torch.equal(whole.ema.shadow[name], parts.ema.shadow[name])
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def test_after_a_kill_the_run_goes_on_from_the_last_saved_step(tmp_path: Path) -> None:
    config = train_config("autoencoder")  # saves every 5 steps
    whole = run(tmp_path / "whole", config)
    (tmp_path / "killed").mkdir()
    killed = Trainer(Regression(), config, tmp_path / "killed", CPU)
    steps = killed.run()
    for _ in range(8):
        next(steps)
    # A kill leaves the state of step 5, a log that goes to step 8, and a torn line at its end.
    state = (tmp_path / "killed" / STATE_FILE).read_bytes()
    log = (tmp_path / "killed" / LOG_FILE).read_text() + '{"step": 9, "lo'
    del steps
    (tmp_path / "killed" / STATE_FILE).write_bytes(state)
    (tmp_path / "killed" / LOG_FILE).write_text(log)
    resumed = Trainer(Regression(), config, tmp_path / "killed", CPU)
    assert resumed.resume()
    assert resumed.step == 5
    for _ in resumed.run():
        pass
    assert all(torch.equal(whole.weights[n], resumed.weights[n]) for n in whole.weights)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")


def test_it_learns(tmp_path: Path) -> None:
    config = train_config(
        "autoencoder", steps=200, optimizer=OptimizerConfig(learning_rate=0.05, warmup_steps=2, weight_decay=0.0)
    )
    run(tmp_path, config)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert losses[-1] < 1e-3 * losses[0]


def test_more_steps_may_be_asked_for_later_but_nothing_else_changed(tmp_path: Path) -> None:
    run(tmp_path, train_config("autoencoder"))
    longer = run(tmp_path, train_config("autoencoder", steps=20))
    assert longer.step == 20
    with pytest.raises(UsageError, match="ema_decay changed"):
        run(tmp_path, train_config("autoencoder", ema_decay=0.5))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_saved_state(tmp_path: Path) -> None:
    config = train_config("autoencoder")
    trainer = Trainer(Regression(poison_at=7), config, tmp_path, CPU)
    with pytest.raises(NumericsError, match="step 7"):
        for _ in trainer.run():
            pass
    resumed = Trainer(Regression(), config, tmp_path, CPU)
    assert resumed.resume()
    assert resumed.step == 5
    assert all(torch.isfinite(w).all() for w in resumed.weights.values())


def test_a_picture_that_cannot_be_read_costs_no_step(tmp_path: Path) -> None:
    class Missing(Regression):
        def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
            if step == 8:
                raise UsageError("cannot read cat.png: No such file or directory")
            return super().loss(step, generator)

    config = train_config("autoencoder")
    with pytest.raises(UsageError, match=r"cannot read cat\.png") as error:
        list(Trainer(Missing(), config, tmp_path, CPU).run())
    assert error.value.hint == "saved after step 8: the same call continues, once that is mended"
    mended, whole = run(tmp_path, config), run(tmp_path / "whole", config)
    for name in whole.weights:
        assert torch.equal(whole.weights[name], mended.weights[name])
    assert log_of(tmp_path) == log_of(tmp_path / "whole")


def test_a_broken_state_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match="cannot resume"):
        Trainer(Regression(), train_config("autoencoder"), tmp_path, CPU).resume()


def test_a_full_disk_is_one_error_and_leaves_the_saved_state(tmp_path: Path) -> None:
    config = train_config("autoencoder")
    trainer = run(tmp_path, config)
    before = (tmp_path / STATE_FILE).read_bytes()
    with room_for(len(before) // 2), pytest.raises(OutputError, match=r"state\.pt: File too large"):
        trainer.save()
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [LOG_FILE, STATE_FILE]


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    constant = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="constant")
    assert {learning_rate(constant, step, 110) for step in range(10, 110)} == {1.0}
