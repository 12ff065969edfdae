"""The loop of every training stage: optimizer, average, log, checkpoint, resume."""

import json
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sdxl_core.errors import CheckpointError, NumericsError, OutputError, UsageError
from sdxl_core.output import whole_file, write_whole
from sdxl_core.training.config import OptimizerConfig, TrainConfig
from sdxl_core.training.ema import Ema, trainable
from sdxl_core.training.optimizers import build_optimizers

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"


class Stage(Protocol):
    """One thing to train: the modules that learn, and the loss of a step."""

    modules: nn.ModuleDict

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of one batch, drawn with the step's own generator, and further values worth logging."""

    def finish(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What goes into the model file, made of the averaged weights at the end of training."""


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One finished step: losses are of that step's batch, elapsed_s is since the run (re)started."""

    step: int
    steps: int
    loss: float
    values: Mapping[str, float]
    learning_rate: float
    elapsed_s: float


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of 0-based step: linear over the warm-up, then constant or half a cosine down to final_fraction."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of all that is random in one step: a resumed run draws what an unbroken one would."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Trainer:
    """A stage on its way: holds the optimizer, the average and the step, and their file in `run_dir`."""

    def __init__(self, stage: Stage, config: TrainConfig, run_dir: Path, device: torch.device) -> None:
        self.stage, self.config, self.run_dir, self.device = stage, config, run_dir, device
        self.weights = trainable(stage.modules.named_parameters())
        self.ema = Ema(self.weights, config.ema_decay)
        self.optimizers = build_optimizers(self.weights, config.optimizer)
        self.step = 0

    def run(self) -> Generator[TrainStep, None, None]:
        """Train to the end, one step at a time; when the caller stops asking, the state is saved.

        Raises:
            NumericsError: the loss is not finite; the last saved state is still good.
            UsageError: a picture cannot be read; the state is saved first.
            OutputError: the state or the log cannot be written.
        """
        config = self.config
        self._trim_log()
        started = time.perf_counter()
        try:
            while self.step < config.steps:
                yield self._one_step(started)
                if self.step % config.save_every == 0:
                    self.save()
        except GeneratorExit:
            # The caller stopped between two steps, so weights and optimizer agree.
            self.save()
            raise
        except UsageError as error:  # before anything of the step has changed
            self.save()
            error.hint = f"saved after step {self.step}: the same call continues, once that is mended"
            raise
        self.save()

    def _one_step(self, started: float) -> TrainStep:
        config = self.config
        rate = learning_rate(config.optimizer, self.step, config.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            loss, values = self.stage.loss(self.step, step_generator(config.seed, self.step))
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise NumericsError(
                f"the loss of step {self.step} is {loss_value}",
                hint="resume from the last saved state with a lower learning rate",
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.weights.values(), config.optimizer.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.weights)
        self.step += 1
        logged = {name: value.item() for name, value in values.items()} | {"grad_norm": norm.item()}
        done = TrainStep(self.step, config.steps, loss_value, logged, rate, time.perf_counter() - started)
        if self.step % config.log_every == 0 or self.step == config.steps:
            self._log(done)
        return done

    def save(self) -> None:
        """Write the whole state; the file is replaced in one move, never left half written.

        Raises:
            OutputError: the disk refused it; the state saved before is still there.
        """
        state = {
            "step": self.step,
            "config": self.config.model_dump_json(),
            "weights": self.weights,
            "ema": self.ema.shadow,
            "ema_updates": self.ema.updates,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with whole_file(self.run_dir / STATE_FILE, overwrite=True) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # torch loses count when the disk refuses a write, and complains of that instead.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def resume(self) -> bool:
        """Continue from the state in the run folder, if there is one.

        Raises:
            UsageError: the state belongs to another configuration (a changed number of steps is allowed).
            CheckpointError: the state cannot be read.
        """
        path = self.run_dir / STATE_FILE
        if not path.exists():
            return False
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a broken file
            raise CheckpointError(f"cannot resume from {path}: {error}", hint="move it away to start anew") from error
        mine, theirs = json.loads(self.config.model_dump_json()), json.loads(state["config"])
        changed = sorted(key for key in mine if key not in _MAY_CHANGE and mine[key] != theirs.get(key))
        if changed:
            raise UsageError(
                f"{path} was made with another configuration: {', '.join(changed)} changed",
                hint="give another output folder to start anew",
            )
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.ema.load(state["ema"], state["ema_updates"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step = state["step"]
        return True

    def _log(self, done: TrainStep) -> None:
        line = {"step": done.step, "loss": done.loss, **done.values}
        line |= {"learning_rate": done.learning_rate, "elapsed_s": round(done.elapsed_s, 2)}
        path = self.run_dir / LOG_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def _trim_log(self) -> None:
        """Drop lines of steps that a kill has undone, so that the log reads as one run."""
        path = self.run_dir / LOG_FILE
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line a kill tore
                continue
            if entry["step"] <= self.step:
                kept.append(line)
        write_whole(path, "".join(line + "\n" for line in kept).encode("utf-8"), overwrite=True)


_MAY_CHANGE = {"steps", "save_every", "log_every", "description", "compile", "precision", "metadata"}
