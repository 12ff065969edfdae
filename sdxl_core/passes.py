"""What makes a loaded model faster and leaves its function as it is, to rounding: one table, each a pass of its own.

What changes the function more than that is marked as approximate, and is made only where it is asked for by name.
A pass replaces layers of the engine's networks; the plain ones, and their memory, are gone. Every pass can be left out,
and those that were made stand in the picture's record.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.conditioning.text import TextTower
from sdxl_core.engine import Engine
from sdxl_core.errors import DeviceError
from sdxl_core.models import autoencoder, unet
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.eight_bits import EightBitBlock
from sdxl_core.models.fused import (
    DecoderPhaseUpsample,
    FusedSelfAttention,
    PackedGEGLU,
    PackedTransformerBlock,
    PhaseUpsample,
    Remembered,
    SmallMapNorm,
    join_text,
)
from sdxl_core.models.fused_autoencoder import FirstStageKernels, JoinedUpsample, fuse_first_stage
from sdxl_core.models.fused_transformer import FusedTransformerBlock, fuse_transformers
from sdxl_core.models.fused_unet import fuse_norms
from sdxl_core.models.graphs import Graphed, graphed_tower
from sdxl_core.models.network_kernels import NetworkKernels, added_in_place
from sdxl_core.models.safe_half import carry_small
from sdxl_core.models.transformer import GEGLU, TransformerBlock
from sdxl_core.models.winograd_blocks import WinogradKernels, gains_by_sums, sum_convolutions
from sdxl_core.ops import kernels, onednn
from sdxl_core.ops.heap import FREED, keep_for_the_next_layer
from sdxl_core.ops.layers import replace_layers
from sdxl_core.ops.onednn import PackedConv2d, packed_linear
from sdxl_core.ops.winograd import DOUBLING, WinogradConv2d, pays

AUTO = "auto"
"""Among names of passes: all that are not approximate and that an engine can have."""

EIGHT_BIT_WIDTH = 640
"""Features of a token from which on products in eight bits were found faster; shorter ones were not timed."""


class Place(Protocol):
    """Where a network runs, and in what: an engine knows it."""

    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Beside:
    """The place of a first stage without its engine.

    Args:
        device: of both.
        dtype: of the network that it belongs to.
    """

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Pass:
    """One way to make an engine faster.

    Args:
        name: what a user calls it.
        run: changes the network of an engine, or gives one with another network.
        why_not: the reason why an engine, or a first stage alone, cannot have it there, or None.
        first_stage: changes a first stage too; None where a pass leaves it as it is.
        approximate: the function is another one than before, if a similar one.
        gains: whether it changes anything of an engine; where it does not, it is not made.
    """

    name: str
    run: Callable[[Engine], Engine | None] = lambda engine: None
    why_not: Callable[[Place], str | None] = lambda place: None
    first_stage: Callable[[AutoencoderKL], None] | None = None
    approximate: bool = False
    gains: Callable[[Engine], bool] = lambda engine: True

    def is_among(self, names: Sequence[str] | None) -> bool:
        """Whether names, or None, mean this pass, see `apply_passes`."""
        return self.name in (names or ()) or (not self.approximate and (names is None or AUTO in names))


def apply_passes(engine: Engine, names: Sequence[str] | None = None) -> Engine:
    """The engine with passes made, in the order of the table; the one that was given must not be used any more.

    Args:
        engine: as loaded.
        names: keys of `PASSES`; None for all that the engine can have and that are not approximate, and "auto" among
            the names for those beside them.

    Raises:
        DeviceError: a pass that was asked for and cannot be had.
    """
    require_passes(engine, names)
    made = []
    for entry in PASSES.values():
        if entry.is_among(names) and entry.why_not(engine) is None and entry.gains(engine):
            engine = entry.run(engine) or engine
            made.append(entry.name)
    apply_first_stage_passes(engine.first_stage, engine, made)
    return replace(engine, passes=tuple(made))


def require_passes(place: Place, names: Sequence[str] | None) -> None:
    """Refuse what was asked for by name and cannot be had, before a model is read for it.

    Raises:
        DeviceError: names the pass, and why.
    """
    for entry in PASSES.values():
        if entry.name in (names or ()) and (reason := entry.why_not(place)) is not None:
            raise DeviceError(f"the pass {entry.name} cannot be made: {reason}", hint="leave it out of --passes")


def apply_first_stage_passes(model: AutoencoderKL, place: Place, names: Sequence[str] | None = None) -> None:
    """Do to a first stage what `apply_passes` does to that of an engine, so that it gives the same picture bit for bit.

    Args:
        model: as loaded, or one that has had the same passes.
        place: of the network that it belongs to.
        names: as for `apply_passes`; those that do not reach it or cannot be had there are left out.
    """
    for entry in PASSES.values():
        if entry.is_among(names) and entry.first_stage is not None and entry.why_not(place) is None:
            entry.first_stage(model)


def _transformer_blocks(engine: Engine) -> Iterator[TransformerBlock]:
    return (module for module in engine.network.modules() if isinstance(module, TransformerBlock))


def _fuse_qkv(engine: Engine) -> None:
    for block in _transformer_blocks(engine):
        block.attn1 = FusedSelfAttention(block.attn1)  # type: ignore[assignment]
        if engine.device.type == "cpu":
            FREED.add(block.attn1.to_qkv.weight.nbytes)  # type: ignore[union-attr,arg-type]


def _keep_text(engine: Engine) -> None:
    layers = [block.attn2 for block in _transformer_blocks(engine)]
    if engine.device.type == "cuda":
        join_text(layers)
        return
    for layer in layers:  # on the CPU a launch costs nothing, and two copies of one large matrix would be 1.4 GB
        layer.to_k, layer.to_v = Remembered(layer.to_k), Remembered(layer.to_v)  # type: ignore[assignment]


def _keep_labels(engine: Engine) -> None:
    engine.network.label_emb = Remembered(engine.network.label_emb)  # type: ignore[arg-type]


def _leave_out_blank(engine: Engine) -> Engine:
    return replace(engine, leaves_out_blank=True)


def _split_upsampling(engine: Engine) -> None:
    def replacement(layer: nn.Module) -> nn.Module | None:
        return PhaseUpsample(layer) if isinstance(layer, unet.Upsample) else None

    replace_layers(engine.network, replacement)


def _split_decoder_upsampling(model: AutoencoderKL) -> None:
    def replacement(layer: nn.Module) -> nn.Module | None:
        match layer:
            case DecoderPhaseUpsample() | JoinedUpsample():  # a first stage that serves two models
                return layer
            case autoencoder.Upsample():
                return DecoderPhaseUpsample(layer)
        return None

    replace_layers(model.decoder, replacement)


def _no_need_of_half(place: Place) -> str | None:
    if place.device.type != "cuda":
        return f"the first stage is float16 on CUDA alone, this device is {place.device.type}"
    if place.dtype is not torch.float16:
        return "the first stage is float16 beside a float16 network alone"
    return None


def _carry_in_half(model: AutoencoderKL) -> None:
    if model.quant_conv.weight.dtype is not torch.float16:  # as it is after this pass alone
        carry_small(model)
        model.half()


def first_stage_kernels() -> FirstStageKernels:
    """The kernels of `fused_first_stage`; imports Triton."""
    from sdxl_core.ops.kernels.doubling import interleave
    from sdxl_core.ops.kernels.norms import add, group_norm
    from sdxl_core.ops.kernels.scores import softmax

    return FirstStageKernels(group_norm, add, interleave, softmax)


def _fuse_first_stage(model: AutoencoderKL) -> None:
    fuse_first_stage(model, first_stage_kernels())


def winograd_kernels() -> WinogradKernels:
    """The kernels of `winograd` on a GPU; imports Triton."""
    from sdxl_core.ops.kernels.doubling import doubled, doubling_sums
    from sdxl_core.ops.kernels.winograd import normed_sums, outputs

    return WinogradKernels(normed_sums, outputs, doubling_sums, doubled)


def _use_winograd(engine: Engine) -> None:
    if engine.device.type == "cuda":
        sum_convolutions(engine.network, winograd_kernels())  # type: ignore[arg-type]
        return

    def replacement(layer: nn.Module) -> nn.Module | None:
        match layer:
            case PhaseUpsample():  # keeps the plain convolution for odd sizes
                if pays(layer.conv):
                    layer.phases = WinogradConv2d(layer.conv, DOUBLING)  # type: ignore[assignment]
                return layer
            case nn.Conv2d() if pays(layer):
                return WinogradConv2d(layer)
        return None

    replace_layers(engine.network, replacement)


def _gains_by_winograd(engine: Engine) -> bool:
    if engine.device.type == "cuda":
        return gains_by_sums(engine.network)
    return any(isinstance(layer, nn.Conv2d) and pays(layer) for layer in engine.network.modules())


def _why_no_winograd(place: Place) -> str | None:
    if place.device.type != "cuda":
        return onednn.why_not(place.device, place.dtype)
    if reason := kernels.why_not(place.device):
        return reason
    major, minor = torch.cuda.get_device_capability(place.device)
    return (
        None
        if major == 9
        else f"on a GPU it is for compute capability 9.0, where it was timed; this is {major}.{minor}"
    )


def _why_not_packed(place: Place) -> str | None:
    return onednn.why_not(place.device, place.dtype)


def _pack(engine: Engine) -> None:
    def block(layer: nn.Module) -> nn.Module | None:
        return PackedTransformerBlock(layer) if isinstance(layer, TransformerBlock) else None

    def replacement(layer: nn.Module) -> nn.Module | None:
        match layer:
            case GEGLU():
                return PackedGEGLU(layer.proj)
            case nn.Linear():
                return packed_linear(layer.weight, layer.bias)
            case nn.Conv2d():
                return PackedConv2d(layer)
            case nn.GroupNorm():
                return SmallMapNorm(layer)
            case nn.LayerNorm():
                return layer.float()  # the same bits in less time: of a 16-bit weight the kernel widens each value
        return None

    replace_layers(engine.network, block)
    replace_layers(engine.network, replacement)
    keep_for_the_next_layer()


def network_kernels() -> NetworkKernels:
    """The kernels of `fused_norms` and `fused_transformer`; imports Triton."""
    from sdxl_core.ops.kernels.doubling import interleave
    from sdxl_core.ops.kernels.gates import geglu
    from sdxl_core.ops.kernels.joins import join
    from sdxl_core.ops.kernels.layer_norms import layer_norm
    from sdxl_core.ops.kernels.norms import add, group_norm
    from sdxl_core.ops.kernels.products import gate_of_woven

    def gated(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return geglu(F.linear(rows, weight), bias)

    return NetworkKernels(group_norm, add, interleave, layer_norm, gated, added_in_place, join, gate_of_woven)


def _fuse_norms(engine: Engine) -> None:
    fuse_norms(engine.network, network_kernels())  # type: ignore[arg-type]


def _fuse_transformer(engine: Engine) -> None:
    fuse_transformers(engine.network, network_kernels())  # type: ignore[arg-type]


def _why_no_kernels(place: Place) -> str | None:
    return kernels.why_not(place.device)


def _put_channels_last(engine: Engine) -> None:
    engine.network.to(memory_format=torch.channels_last)


def _to_eight_bits(engine: Engine) -> None:
    from sdxl_core.ops.kernels.eight_bits import TRITON

    def replacement(layer: nn.Module) -> nn.Module | None:
        wide = isinstance(layer, FusedTransformerBlock) and layer.norm1.weight.numel() >= EIGHT_BIT_WIDTH
        return EightBitBlock(layer, TRITON) if wide else None  # type: ignore[arg-type]

    blocks = list(_transformer_blocks(engine))
    if not any(isinstance(block, FusedTransformerBlock) for block in blocks):
        raise DeviceError("the pass fp8 cannot be made without fused_transformer", hint="--passes auto,fp8")
    if all(block.norm1.weight.numel() < EIGHT_BIT_WIDTH for block in blocks):
        raise DeviceError("the pass fp8 cannot be made: this model has no layer that is large enough to gain from it")
    replace_layers(engine.network, replacement)


def _why_no_eight_bits(place: Place) -> str | None:
    if reason := kernels.why_not(place.device):
        return reason
    if place.dtype not in (torch.float16, torch.bfloat16):
        return "it takes the place of float16 or bfloat16 only"
    major, minor = torch.cuda.get_device_capability(place.device)
    return None if (major, minor) >= (8, 9) else f"it needs compute capability 8.9, this GPU has {major}.{minor}"


def _record_calls(engine: Engine) -> Engine:
    embedders = engine.conditioner.embedders
    for i, embedder in enumerate(embedders):
        if isinstance(embedder, get_args(TextTower)):
            embedders[i] = graphed_tower(embedder)
    return replace(engine, network=Graphed(engine.network))


def _why_no_graphs(place: Place) -> str | None:
    return None if place.device.type == "cuda" else f"it needs a CUDA device, this one is {place.device.type}"


_TABLE = (
    Pass("fused_qkv", _fuse_qkv),
    Pass("kept_text", _keep_text),
    Pass("kept_labels", _keep_labels),
    Pass("blank_text", _leave_out_blank),
    Pass("safe_half", why_not=_no_need_of_half, first_stage=_carry_in_half),
    Pass("phase_upsampling", _split_upsampling, first_stage=_split_decoder_upsampling),
    Pass("fused_first_stage", why_not=_why_no_kernels, first_stage=_fuse_first_stage),
    Pass("channels_last", _put_channels_last, _why_no_kernels),  # PyTorch's own norms lose by it
    Pass("fused_norms", _fuse_norms, _why_no_kernels),
    Pass("winograd", _use_winograd, _why_no_winograd, gains=_gains_by_winograd),  # on a GPU of fused blocks alone
    Pass("packed_weights", _pack, _why_not_packed),
    Pass("fused_transformer", _fuse_transformer, _why_no_kernels),
    Pass("fp8", _to_eight_bits, _why_no_eight_bits, approximate=True),
    Pass("cuda_graph", _record_calls, _why_no_graphs),  # the last: it records what the others have made
)

PASSES: Mapping[str, Pass] = MappingProxyType({entry.name: entry for entry in _TABLE})
