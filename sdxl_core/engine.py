"""A model in memory, ready to run: network, denoiser, conditioner and first stage on one device."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sdxl_core.checkpoints.check import check_keys, check_model, first_stage_prefix
from sdxl_core.checkpoints.header import Header, read_header
from sdxl_core.checkpoints.load import Part, load_parts
from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.conditioning.memory import TextMemory
from sdxl_core.config import ModelConfig, borrowed_towers
from sdxl_core.devices import dtype_name, memory_guard, require_memory, resolve_device, resolve_dtype, settle_arithmetic
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.graphs import forget_recordings
from sdxl_core.models.unet import UNet
from sdxl_core.ops.attention import BACKENDS, AttentionBackend, resolve_attention
from sdxl_core.ops.libraries import set_up_beside
from sdxl_core.ops.meta import shapes_only
from sdxl_core.plan import Plan
from sdxl_core.presets import parts_owner
from sdxl_core.progress import SILENT, Reporter
from sdxl_core.types import Conditioning, Touch

NETWORK_PREFIX = "model.diffusion_model."
CONDITIONER_PREFIX = "conditioner."
FIRST_STAGE_PREFIX = "first_stage_model."

_LOADING_HINT = "close other programs, or take --dtype bfloat16 (float16 on CUDA)"


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """Everything that a picture is made with.

    Args:
        config: what the weights are.
        network: predicts noise; its parameters are of `dtype`.
        denoiser: the preconditioning around it.
        conditioner: text towers, of `dtype`, and embedders of numbers.
        first_stage: latents to pictures, of `first_stage_dtype`.
        device: where all of them live.
        dtype: of network and text towers.
        attention: name of the network's attention backend.
        passes: names of `sdxl_core.passes` that were made.
        leaves_out_blank: the network is not given words that are zeros, see `Conditioning`, and does less for it.

    Attributes:
        texts: what the towers said of the last prompts.
    """

    config: ModelConfig
    network: nn.Module
    denoiser: Denoiser
    conditioner: Conditioner
    first_stage: AutoencoderKL
    device: torch.device
    dtype: torch.dtype
    attention: str
    passes: tuple[str, ...] = ()
    leaves_out_blank: bool = False
    texts: TextMemory = field(default_factory=TextMemory, init=False, repr=False)

    @property
    def first_stage_dtype(self) -> torch.dtype:
        """As loaded float32 beside a float16 network, else `dtype`; its passes may change it."""
        return self.first_stage.quant_conv.weight.dtype

    def predict(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning, touch: Touch | None = None) -> Tensor:
        """Call the network in its dtype; a `Network` for the denoiser, which computes in float32.

        Args:
            x_in: (b, c, h, w) scaled noisy latent, float32.
            c_noise: (b,) timesteps; they stay float32, since half precision cannot tell 999 from 998.5.
            cond: b rows.
            touch: what guidance changes inside the network.

        Returns:
            (b, c, h, w) float32.
        """
        raw: Tensor = self.network(
            x_in.to(self.dtype), c_noise, cond.crossattn.to(self.dtype), cond.vector.to(self.dtype), touch
        )
        return raw.float()

    def make_room(self) -> bool:
        """Give up memory that only makes the next calls faster, as recordings; whether there was any."""
        return forget_recordings(self.network, self.conditioner)

    def stamp(self, plan: Plan) -> Plan:
        """The plan with device, dtype, attention and passes as this engine has resolved them."""
        resolved = {"device": self.device.type, "dtype": dtype_name(self.dtype), "attention": self.attention}
        return plan.model_copy(update={**resolved, "passes": self.passes})


def load_engine(
    model: ModelConfig,
    path: str | Path,
    *,
    vae_path: str | Path | None = None,
    first_stage: AutoencoderKL | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    reporter: Reporter = SILENT,
) -> Engine:
    """Load a model; memory peaks at its weights and a few megabytes.

    Names, shapes and free memory are checked before anything is allocated.

    Args:
        model: what the file must hold.
        path: one safetensors file in the original layout; where the model takes parts from another one's file, that
            file lies beside it.
        vae_path: a file with another first stage, which replaces the one in `path` (that may then lack it).
        first_stage: one that is in memory already, of another model with the same latents; none is read then.
        device: auto, cpu, cuda or cuda:N.
        dtype: of network and text towers: auto, float32, float16 or bfloat16, see `resolve_dtype`.
        attention: auto or the name of a backend of `sdxl_core.ops.attention`.
        reporter: counts bytes read, one task a file.

    Raises:
        CheckpointError: a file is missing, broken, of another kind, or its tensors are not the model's.
        DeviceError: device, dtype or backend cannot be had here.
        MemoryExhaustedError: the weights do not fit.
    """
    place = device if isinstance(device, torch.device) else resolve_device(device)
    precision = resolve_dtype(dtype, place)
    settle_arithmetic(place)
    backend = resolve_attention(attention, place, precision, model.network.num_head_channels)

    with shapes_only():
        network = UNet(model.network, attention=backend.fn)
        conditioner = Conditioner(model.conditioner)
    part = None
    if first_stage is None:
        first_stage, part = _first_stage_part(model, backend, place, precision)
    files = _sources(
        model,
        Path(path),
        vae_path,
        network=Part(network, NETWORK_PREFIX, precision),
        conditioner=Part(conditioner, CONDITIONER_PREFIX, precision),
        first_stage=part,
    )
    needed = sum(_bytes(part) for _, parts in files for part in parts)
    require_memory(needed, place, f"the weights of {model.name} in {dtype_name(precision)}", _LOADING_HINT)
    loading = memory_guard(place, f"loading {Path(path).name}", _LOADING_HINT)
    with loading, set_up_beside(place, precision, backend.fn):
        for file, parts in files:
            load_parts(file, parts, device=place, reporter=reporter)
    for module in (network, conditioner, first_stage):
        module.eval().requires_grad_(False)
    return Engine(
        config=model,
        network=network,
        denoiser=Denoiser(model.denoiser),
        conditioner=conditioner,
        first_stage=first_stage,
        device=place,
        dtype=precision,
        attention=backend.name,
    )


def load_first_stage(
    model: ModelConfig,
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    reporter: Reporter = SILENT,
) -> AutoencoderKL:
    """Load the first stage alone, as `load_engine` has it; of a whole model's file nothing else is read.

    Args:
        model: says what the first stage is.
        path: a model file or a file with a first stage alone.
        device: auto, cpu, cuda or cuda:N.
        dtype: of the network that the first stage belongs to; its own is float32 beside float16, until it has passes.
        attention: auto or the name of a backend of `sdxl_core.ops.attention`.
        reporter: counts bytes read.

    Raises:
        CheckpointError: the file is missing, broken, has no first stage, or one of another shape.
        DeviceError: device, dtype or backend cannot be had here.
        MemoryExhaustedError: the weights do not fit.
    """
    place = device if isinstance(device, torch.device) else resolve_device(device)
    precision = resolve_dtype(dtype, place)
    settle_arithmetic(place)
    backend = resolve_attention(attention, place, precision, model.network.num_head_channels)
    header = read_header(path)
    first_stage, part = _first_stage_part(model, backend, place, precision)
    part = replace(part, prefix=first_stage_prefix(header))
    check_keys(header, _shapes([part]), [part.prefix])
    require_memory(_bytes(part), place, f"the first stage of {model.name}", _LOADING_HINT)
    with memory_guard(place, f"loading {header.path.name}", _LOADING_HINT):
        load_parts(header, [part], device=place, reporter=reporter)
    return first_stage.eval().requires_grad_(False)


def _first_stage_part(
    model: ModelConfig, backend: AttentionBackend, place: torch.device, precision: torch.dtype
) -> tuple[AutoencoderKL, Part]:
    """The first stage beside a network of `precision`, without weights yet, and what to load into it."""
    # As it is it overflows in float16, activations of the published weights pass 65504: see the pass safe_half.
    own = torch.float32 if precision is torch.float16 else precision
    with shapes_only():
        module = AutoencoderKL(model.first_stage, attention=_first_stage_attention(model, backend, place, own).fn)
    # Measured on a CPU in bfloat16: a decode is 1.1 to 1.8 times as fast with channels last, the network only half.
    channels_last = place.type == "cpu" and own is torch.bfloat16
    return module, Part(module, FIRST_STAGE_PREFIX, own, channels_last)


def _sources(
    model: ModelConfig,
    path: Path,
    vae_path: str | Path | None,
    *,
    network: Part,
    conditioner: Part,
    first_stage: Part | None,
) -> list[tuple[Header, list[Part]]]:
    """Which parts are read from which file, each file checked against them."""
    header = read_header(path)
    owner = parts_owner(model)
    own, shared, unused = [network], [], []
    if owner is None:
        own.append(conditioner)
    else:
        for position, theirs in borrowed_towers(model, owner).items():
            tower = cast(Conditioner, conditioner.module).embedders[position]
            shared.append(replace(conditioner, module=tower, prefix=f"{CONDITIONER_PREFIX}embedders.{theirs}."))
    files = [(header, own)]
    if first_stage is None:
        unused.append(FIRST_STAGE_PREFIX)
    elif vae_path is not None:
        vae_header = read_header(vae_path)
        vae = replace(first_stage, prefix=first_stage_prefix(vae_header))
        check_keys(vae_header, _shapes([vae]), [vae.prefix])
        files.append((vae_header, [vae]))
        unused.append(FIRST_STAGE_PREFIX)
    else:
        (own if owner is None else shared).append(first_stage)
    check_model(header, model, _shapes(own), unused=unused)
    if owner is not None:
        beside = read_header(path.with_name(owner.file.name))
        check_keys(beside, _shapes(shared), [part.prefix for part in shared])
        files.append((beside, shared))
    return files


def _first_stage_attention(
    model: ModelConfig, chosen: AttentionBackend, device: torch.device, dtype: torch.dtype
) -> AttentionBackend:
    """The chosen backend where it takes the first stage's single wide head, else the one that takes everything."""
    width = model.first_stage.ch * model.first_stage.ch_mult[-1]
    return chosen if chosen.why_not(device, dtype, width) is None else BACKENDS["sdpa"]


def _shapes(parts: Sequence[Part]) -> dict[str, torch.Size]:
    return {part.prefix + name: slot.shape for part in parts for name, slot in part.module.state_dict().items()}


def _bytes(part: Part) -> int:
    itemsize = (part.dtype or torch.float32).itemsize
    return sum(slot.numel() * itemsize for slot in part.module.state_dict().values())
