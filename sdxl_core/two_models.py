"""A model and the one that finishes its pictures: where each of them is while the other works."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from sdxl_core.checkpoints.header import read_header
from sdxl_core.config import ModelConfig, borrowed_towers
from sdxl_core.devices import free_memory_bytes, memory_guard, require_memory
from sdxl_core.engine import CONDITIONER_PREFIX, FIRST_STAGE_PREFIX, NETWORK_PREFIX, Engine
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.presets import parts_file, parts_owner

Residence = Literal["keep", "offload", "reload"]
"""Where the resting model is.

keep: on the device. offload: in the memory of the host. reload: nowhere, it is read from its file when its turn comes.
"""

Load = Callable[[AutoencoderKL | None], Engine]
"""Loads one of the models; it is given the first stage that is there already, if one is."""

ROOM = 1.25
"""How much more than the weights must be free: what passes add to them, a step, a decode, and an allocator's holes.

Measured with SDXL's base and refiner in bfloat16 on a CPU, the program itself included: 1.06 for pictures of 256x256,
without the pass `winograd`. That adds 0.13, counted, and a step of 1024x1024 with its decode in pieces 0.03.
"""

_MOVING_HINT = "--memory reload reads a model again when its turn comes"


def choose_residence(base_bytes: int, refiner_bytes: int, device: torch.device) -> Residence:
    """The quickest way that fits into what is free now.

    On the CPU the host's memory is the device's, so the choice is between keeping and reloading.

    Args:
        base_bytes: weights of the first model, with the first stage that serves both.
        refiner_bytes: weights of the second, without one.
        device: where the one at work is.
    """
    free, both = free_memory_bytes(device), base_bytes + refiner_bytes
    if free is None or both * ROOM <= free:
        return "keep"
    host = free_memory_bytes(torch.device("cpu"))
    return "offload" if device.type != "cpu" and (host is None or both <= host) else "reload"


def settled(residence: Residence, device: torch.device) -> Residence:
    """What a residence comes to on a device: on the CPU there is no other memory to offload to, so that is to keep."""
    return "keep" if residence == "offload" and device.type == "cpu" else residence


class TwoModels:
    """Both models, loaded when they are first asked for; one first stage decodes for both.

    Args:
        base: loads the first model.
        refiner: loads the second, where there is one.
        residence: where the resting one is.
    """

    def __init__(self, base: Load, refiner: Load | None = None, residence: Residence = "keep") -> None:
        self._loads = (base, refiner)
        self._engines: list[Engine | None] = [None, None]
        self._first_stage: AutoencoderKL | None = None
        self.residence = residence

    def base(self) -> Engine:
        """The first model, ready; the second rests. An engine of an earlier turn must not be used any more.

        Raises:
            MemoryExhaustedError: it does not fit, or what rests does not fit into the memory of the host.
        """
        return self._turn(0)

    def refiner(self) -> Engine:
        """The second model, ready; the first rests."""
        return self._turn(1)

    def _turn(self, index: int) -> Engine:
        self._rest(1 - index)
        engine = self._engines[index]
        if engine is None or self.residence == "offload":
            # PyTorch keeps what a model at work has freed, and before loading the system is asked what is free.
            torch.cuda.empty_cache()
        if engine is None:
            load = self._loads[index]
            if load is None:
                raise ValueError("there is no second model")
            engine = self._engines[index] = load(self._first_stage)
            self._first_stage = engine.first_stage
        elif self.residence == "offload":
            _move(engine, engine.device)
        return engine

    def _rest(self, index: int) -> None:
        engine = self._engines[index]
        if engine is None or self.residence == "keep":
            return
        if self.residence == "reload":
            self._engines[index] = None
        else:
            _move(engine, torch.device("cpu"))


def _move(engine: Engine, device: torch.device) -> None:
    """Network, text towers and what these have said; the first stage stays."""
    parts, name = (engine.network, engine.conditioner), engine.config.name
    if device.type == "cpu":  # a process that takes too much there is killed
        slots = (slot for part in parts for slot in (*part.parameters(), *part.buffers()))
        needed = sum(slot.nbytes for slot in slots if slot.device.type != "cpu")
        require_memory(needed, device, f"the weights of {name} while it rests", _MOVING_HINT)
    with memory_guard(device, f"moving {name} to {device}", _MOVING_HINT):
        for part in parts:
            part.to(device)
        engine.texts.move(device)


def weights_bytes(model: ModelConfig, path: Path, dtype: torch.dtype, *, first_stage: bool) -> int:
    """What the weights of a model take in memory, told from the headers of its file and of the one with its parts.

    Args:
        model: whose they are.
        path: its safetensors file.
        dtype: in memory.
        first_stage: whether its first stage is read too.
    """
    own = [NETWORK_PREFIX, CONDITIONER_PREFIX, *([FIRST_STAGE_PREFIX] if first_stage else [])]
    wanted = {path: own}
    owner, beside = parts_owner(model), parts_file(model, path)
    if owner is not None and beside is not None:
        towers = [f"{CONDITIONER_PREFIX}embedders.{theirs}." for theirs in borrowed_towers(model, owner).values()]
        wanted = {path: [NETWORK_PREFIX], beside: [*towers, *own[2:]]}
    numbers = sum(
        info.numel
        for file, prefixes in wanted.items()
        for key, info in read_header(file).tensors.items()
        if key.startswith(tuple(prefixes))
    )
    return numbers * dtype.itemsize
