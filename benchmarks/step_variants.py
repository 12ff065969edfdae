"""The UNet's call of a guided step on a GPU in several ways: milliseconds, kernels by kind, the error against float32.

PYTHONPATH=. python benchmarks/step_variants.py [--size 1024x1024 --kernels 30]

"graph" is the call as one CUDA graph, "alone" with every launch made by Python; words are those of a step before.
"""

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from decode_variants import show_kernels, times_ms
from torch import Tensor, nn

from sdxl_core import passes
from sdxl_core.config import FirstStageConfig, NetworkConfig
from sdxl_core.engine import Engine
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.fused_transformer import FusedTransformerBlock
from sdxl_core.models.network_kernels import NetworkKernels, never_woven
from sdxl_core.models.unet import UNet
from sdxl_core.ops.attention import BACKENDS
from sdxl_core.passes import apply_passes
from sdxl_core.presets import load_preset

TINY = NetworkConfig(
    model_channels=32,
    channel_mult=(1, 2),
    attention_resolutions=(2,),
    transformer_depth=(0, 1),
    num_head_channels=16,
    context_dim=48,
    adm_in_channels=40,
)
EARLIER = ("fused_qkv", "kept_text", "kept_labels", "phase_upsampling")
ALL = (*EARLIER, "channels_last", "fused_norms", "winograd", "fused_transformer")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run it.

    Args:
        title: for the table.
        names: of the passes.
        attention: of kernels; None for PyTorch's own choice.
        kernels: in the place of those that the passes take.
        search: whether cuDNN tries its algorithms first.
    """

    title: str
    names: tuple[str, ...] = ALL
    attention: str | None = None
    kernels: Callable[[NetworkKernels], NetworkKernels] | None = None
    search: bool = False


def gated_after(kernels: NetworkKernels) -> NetworkKernels:
    return replace(kernels, woven=never_woven)


WAYS = [
    Way("plain", ()),
    Way("passes for any device", EARLIER),
    Way("  and channels_last", ALL[:5]),
    Way("  and fused_norms", ALL[:6]),
    Way("  and fused_transformer", (*ALL[:6], "fused_transformer")),
    Way("  and winograd: as it is run"),
    Way("    cuDNN's attention first", attention="cudnn_first"),
    Way("    FlashAttention first", attention="flash_first"),
    Way("    gate after cuBLAS", kernels=gated_after),
    Way("    cuDNN tries its algorithms", search=True),
    Way("    eight-bit products", (*ALL, "fp8")),
]


@contextmanager
def kernels_of(change: Callable[[NetworkKernels], NetworkKernels] | None) -> Iterator[None]:
    own = passes.network_kernels
    if change is not None:
        passes.network_kernels = lambda: change(own())
    try:
        yield
    finally:
        passes.network_kernels = own


def built(plain: UNet, way: Way, dtype: torch.dtype) -> nn.Module:
    """A network that runs this way."""
    parts: dict[str, Any] = dict.fromkeys(("config", "denoiser", "conditioner"))
    with torch.device("meta"):
        parts["first_stage"] = AutoencoderKL(FirstStageConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1))
    device = next(plain.parameters()).device
    engine = Engine(network=copy.deepcopy(plain), device=device, dtype=dtype, attention="sdpa", **parts)
    with kernels_of(way.kernels):
        network = apply_passes(engine, way.names).network
    for layer in network.modules():
        if way.attention is not None and hasattr(layer, "attention"):
            layer.attention = BACKENDS[way.attention].fn
    return network


def random_network(config: NetworkConfig, device: torch.device, dtype: torch.dtype) -> UNet:
    """With weights that keep maps near unit size, drawn on the device."""
    with torch.device("meta"):
        network = UNet(config)
    network = network.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(time.time_ns() % 2**31)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False).normal_(generator=generator)
        if parameter.ndim > 1:
            parameter.mul_(parameter[0].numel() ** -0.5)
        else:
            parameter.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
    return network.eval()


def graph_ms(run: Callable[[], Tensor], runs: int) -> float:
    """Of a call that is one CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median(times_ms(graph.replay, runs, torch.device("cuda")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x1024", help="WIDTHxHEIGHT")
    parser.add_argument("--batch", type=int, default=2, help="rows of a call: two for a guided picture")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kernels", type=int, default=25, help="how many of the longest kernels are shown")
    parser.add_argument("--only", help="of the ways, those with this in their title, and the plain one")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a network for a test of this script")
    args = parser.parse_args()
    began, device = time.perf_counter(), torch.device(args.device)
    width, height = (int(side) // 8 for side in args.size.split("x"))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    config = TINY if args.tiny else load_preset("sdxl-base-1.0").model.network

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, t = drawn(args.batch, config.in_channels, height, width), torch.full((args.batch,), 500.0, device=device)
    words, vector = drawn(args.batch, 77, config.context_dim), drawn(args.batch, config.adm_in_channels)
    with torch.inference_mode():
        plain = random_network(config, device, dtype)
        torch.backends.cudnn.allow_tf32 = False
        wide = copy.deepcopy(plain).float()
        exact = wide(x.float(), t, words.float(), vector.float()).double()
        del wide
        print(f"{'way':<42} {'graph':>8} {'alone':>8} {'error':>9}")
        for way in WAYS:
            if args.only and args.only not in way.title and way.names:
                continue
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                torch.backends.cudnn.benchmark = way.search
                network = built(plain, way, dtype)
                run = partial(network, x, t, words, vector)
                error = float((run().double() - exact).norm() / exact.norm())
                alone = median(times_ms(run, args.runs, device))
                graph = graph_ms(run, args.runs) if device.type == "cuda" else alone
            except Exception as failure:  # the others are still of use
                print(f"{way.title:<42} {type(failure).__name__}: {str(failure).splitlines()[0][:80]}", flush=True)
                continue
            print(f"{way.title:<42} {graph:8.2f} {alone:8.2f} {error:9.2e}", flush=True)
            if args.kernels and device.type == "cuda" and way.title.endswith("as it is run"):
                owing = sum(isinstance(layer, FusedTransformerBlock) for layer in network.modules())
                show_kernels(f"{way.title.strip()}, {owing} fused blocks", run, args.kernels)
            del network, run
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
