"""The second model on the command line: which one, and what is said about it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sdxl_cli.console import counted
from sdxl_cli.flags import DrawFlags, Memory
from sdxl_cli.places import models_folders, pull_hint
from sdxl_core.checkpoints.check import check_network, differences
from sdxl_core.checkpoints.detect import detect
from sdxl_core.checkpoints.find import find_file
from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.markers import adapt_model, read_markers
from sdxl_core.config import ModelConfig
from sdxl_core.diffusion.samplers import looks_back
from sdxl_core.errors import CheckpointError, UsageError
from sdxl_core.plan import Plan
from sdxl_core.presets import Preset, list_presets, load_preset

if TYPE_CHECKING:
    import torch

    from sdxl_core.two_models import Residence


@dataclass(frozen=True, slots=True)
class Refiner:
    """A second model; `path` is None where its file is missing and nothing will be drawn."""

    preset: Preset
    path: Path | None


def resolve_refiner(flags: DrawFlags, preset: Preset) -> Refiner | None:
    """The model that finishes the pictures, where flags or recipe ask for one.

    Raises:
        UsageError: flags that exclude each other or have no effect, or no refiner is named.
        CheckpointError: its file is missing, or is another kind of model.
    """
    given = {"--refine": flags.refine, "--refiner-preset": flags.refiner_preset, "--refiner-model": flags.refiner_model}
    named = [name for name, value in given.items() if value is not None]
    if flags.refiner is False and named:
        raise UsageError(f"--no-refiner and {named[0]} exclude each other")
    if not preset.recipe.refiner.use and not named:
        _check_scores(flags, preset)
        return None
    name = flags.refiner_preset or preset.recipe.refiner.preset
    if name is None:
        raise UsageError(
            f"preset {preset.name!r} names no refiner", hint="name one: --refiner-preset sdxl-refiner-1.0, for SDXL"
        )
    refiner = load_preset(name)
    try:
        path = find_file(
            flags.refiner_model or refiner.model.file.name, models_folders(), hint=pull_hint(refiner.model)
        )
    except CheckpointError:
        if flags.refiner_model is None and (flags.dry_run or flags.print_config):
            return Refiner(refiner, None)
        raise
    header = read_header(path)
    check_network(header, refiner.model)
    model, _ = adapt_model(refiner.model, read_markers(header), refiner.recipe.prediction, refiner.recipe.shift)
    return Refiner(replace(refiner, model=model), path)


def refiner_in(file: str) -> str | None:
    """The preset of the refiner in a file, told from its header; None where it is no refiner that a preset describes.

    Raises:
        UsageError: several presets describe it.
        CheckpointError: it is missing or damaged.
    """
    found = detect(read_header(find_file(file, models_folders())))
    models = {entry.name: load_preset(entry.name).model for entry in list_presets() if entry.kind == "model"}
    refiners = {name: model for name, model in models.items() if model.kind == "refiner"}
    names = [
        name for name, model in refiners.items() if model.file_kind == found.kind and not differences(found, model)
    ]
    if len(names) > 1:
        raise UsageError(f"{file} is the refiner of several presets: {', '.join(names)}", hint="name one: --preset")
    return names[0] if names else None


def _check_scores(flags: DrawFlags, preset: Preset) -> None:
    reads = any(embedder.input_key == "aesthetic_score" for embedder in preset.model.conditioner.embedders)
    if not reads and (flags.aesthetic_score is not None or flags.negative_aesthetic_score is not None):
        raise UsageError(f"an aesthetic score has no effect: {preset.model.name} reads none", hint="add --refiner")


def describe_handover(plan: Plan) -> str:
    """What each of the two models walks, the place of the switch in its three ways, and what a sampler forgets there.

    Args:
        plan: with a refiner.
    """
    assert plan.refiner is not None
    first, second, switch = plan.sigmas(), plan.refiner_sigmas(), plan.switch()
    walks = ", then ".join(
        f"{model} {counted(len(levels) - 1, 'step', 'steps')}, sigma {levels[0]:.4g} to {levels[-1]:.4g}"
        for model, levels in ((plan.model, first), (plan.refiner.model, second))
    )
    if switch is None:
        return f"{plan.refiner.mode}: {walks}, with new noise"
    place = f"switch at step {switch.step}, sigma {switch.sigma:.4g}, fraction {switch.fraction:.3g}"
    looking_back = looks_back(plan.sampler.name, *plan.sampler.options().items())
    anew = f"; {plan.sampler.name} begins anew there, without its history" if looking_back else ""
    return f"{plan.refiner.mode}: {walks}; {place}{anew}"


def resolve_residence(
    flags: DrawFlags,
    first: tuple[ModelConfig, Path],
    second: tuple[ModelConfig, Path],
    device: "torch.device",
    dtype: "torch.dtype",
) -> "tuple[Residence, str]":
    """Where the resting one of two models is, and why in words; free memory is looked at now."""
    from sdxl_core.devices import free_memory_bytes
    from sdxl_core.two_models import choose_residence, settled, weights_bytes

    ours, theirs = (weights_bytes(*one, dtype, first_stage=one is first) for one in (first, second))
    asked = flags.memory.value
    residence = (
        choose_residence(ours, theirs, device)
        if flags.memory is Memory.auto
        else settled(cast("Residence", asked), device)
    )
    free = free_memory_bytes(device)
    left = "" if free is None else f", {free / 1e9:.2f} GB free on {device}"
    same = " (on the CPU offload is keep)" if flags.memory is Memory.offload and residence == "keep" else ""
    return residence, f"{residence}{same}: weights of {ours / 1e9:.2f} GB and {theirs / 1e9:.2f} GB{left}"
