"""A training preset, a folder of pictures and an output folder, put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.load import load_into
from sdxl_core.checkpoints.save import save_weights
from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.config import ModelConfig, borrowed_towers
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.errors import CheckpointError
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.unet import UNet
from sdxl_core.ops.attention import sdpa, written_out
from sdxl_core.output import prepare_directory
from sdxl_core.presets import load_preset, parts_owner
from sdxl_core.progress import SILENT, Reporter
from sdxl_core.training.autoencoder import AutoencoderStage
from sdxl_core.training.config import (
    AutoencoderLossConfig,
    ContrastiveLossConfig,
    TrainConfig,
)
from sdxl_core.training.contrastive import ContrastiveStage
from sdxl_core.training.data import Picture, read_image_folder
from sdxl_core.training.diffusion import DiffusionStage
from sdxl_core.training.latents import cache_latents
from sdxl_core.training.loop import Stage, Trainer

MODEL_FILE = "model.safetensors"
NETWORK, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "first_stage_model.", "conditioner."


def prepare(
    config: TrainConfig,
    data: Path,
    run_dir: Path,
    *,
    init: Sequence[Path] = (),
    device: torch.device,
    reporter: Reporter = SILENT,
) -> Trainer:
    """Build the stage of a training preset, and continue from `run_dir` if it holds a state.

    Args:
        config: the training preset.
        data: image folder with `metadata.jsonl`.
        run_dir: receives the state, the log, cached latents and at the end the model file.
        init: model files that give weights to start from; of parts that several have, the last file's count.
        device: where to train.
        reporter: told about the encoding of pictures.

    Raises:
        UsageError: data that cannot be read; a run folder of another configuration.
        CheckpointError: an init file that lacks a part this stage needs, or does not fit the model.
        OutputError: the run folder cannot be made or written to.
    """
    model = load_preset(config.model).model
    pictures = read_image_folder(data)
    prepare_directory(run_dir)
    torch.manual_seed(config.seed)
    stage = _build_stage(config, model, pictures, run_dir, init, device, reporter)
    trainer = Trainer(stage, config, run_dir, device)
    trainer.resume()
    return trainer


def _build_stage(
    config: TrainConfig,
    model: ModelConfig,
    pictures: Sequence[Picture],
    run_dir: Path,
    init: Sequence[Path],
    device: torch.device,
    reporter: Reporter,
) -> Stage:
    channels_last = torch.channels_last
    match config.loss:
        case AutoencoderLossConfig():
            autoencoder = AutoencoderKL(model.first_stage)
            _fill(autoencoder, FIRST_STAGE, init, required=False)
            return AutoencoderStage(autoencoder.to(device).to(memory_format=channels_last), pictures, config, device)
        case ContrastiveLossConfig():
            conditioner = Conditioner(model.conditioner)
            _fill(conditioner, CONDITIONER, init, required=False)
            return ContrastiveStage(conditioner.to(device), pictures, config, device)
    autoencoder = AutoencoderKL(model.first_stage)
    conditioner = Conditioner(model.conditioner)
    # Backwards, the fused kernel of a CPU is the slower one at micro's sizes: by a fifth of a whole step.
    network = UNet(model.network, attention=written_out if device.type == "cpu" else sdpa)
    _fill(autoencoder, FIRST_STAGE, init, required=True)
    networks = init
    if (owner := parts_owner(model)) is None:
        _fill(conditioner, CONDITIONER, init, required=True)
    else:
        networks = [path for path in init if not _holds(path, CONDITIONER)]  # the owner's file has a network of its own
        for position, theirs in borrowed_towers(model, owner).items():
            _fill(conditioner.embedders[position], f"{CONDITIONER}embedders.{theirs}.", init, required=True)
    _fill(network, NETWORK, networks, required=False)
    cache = cache_latents(
        pictures,
        config.data.buckets,
        autoencoder.to(device).to(memory_format=channels_last),
        run_dir / "latents.safetensors",
        seed=config.seed,
        dtype=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        device=device,
        reporter=reporter,
    )
    return DiffusionStage(
        network.to(device),
        conditioner.to(device),
        Denoiser(model.denoiser),
        pictures,
        cache,
        model.first_stage,
        config,
        device,
    )


def _fill(module: nn.Module, prefix: str, files: Sequence[Path], *, required: bool) -> None:
    """Load the module from the last of the files that has its part; float32, as training keeps its weights."""
    holders = [path for path in files if _holds(path, prefix)]
    if not holders:
        if required:
            raise CheckpointError(
                f"no init file has weights under {prefix}",
                hint="train that part first and give its model file with --init",
            )
        return
    load_into(module, holders[-1], prefix, dtype=torch.float32)


def _holds(path: Path, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in read_header(path).tensors)


def export(
    trainer: Trainer, path: Path, *, init: Sequence[Path] = (), dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write the averaged weights of the trained part as one model file.

    Every other part of the init files goes with them, except where the model takes its parts from another one's file.
    """
    tensors: dict[str, Tensor] = {}
    borrows = load_preset(trainer.config.model).model.parts_from is not None
    for file_path in () if borrows else init:
        with safe_open(file_path, "pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors |= trainer.stage.finish(trainer.ema.shadow)
    save_weights(path, tensors, dtype=dtype, metadata=metadata)
