#!/usr/bin/env python3
"""One float32 call of a full-size UNet beside diffusers', on the weights of one checkpoint; prints a Markdown table.

    PYTHONPATH=. benchmarks/fidelity_full_size.py sdxl-base-1.0=BASE.safetensors sdxl-refiner-1.0=REFINER.safetensors

Each of the two runs in a process of its own, one after the other, so that about 12 GB are enough and the peaks are
theirs alone. Ours is loaded by `sdxl_core`, diffusers' by safetensors itself. Needs diffusers (extra `test`).
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdxl_core.checkpoints.load import load_into
from sdxl_core.config import ModelConfig, OpenClipTextConfig, SizeEmbedderConfig
from sdxl_core.models.unet import UNet
from sdxl_core.ops.layers import sinusoid
from sdxl_core.presets import load_preset

PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class Measurement:
    """Output of one call and what it took; memory_bytes is the peak beyond what the imports had used."""

    output: Path
    weights_bytes: int
    load_s: float
    load_memory_bytes: int
    call_s: float
    memory_bytes: int


def inputs(model: ModelConfig, height: int, width: int) -> dict[str, Tensor]:
    """Fixed random inputs of a picture of 8 x (height, width) pixels."""
    generator = torch.Generator().manual_seed(0)
    embedders = model.conditioner.embedders
    pooled = next(e.width for e in embedders if isinstance(e, OpenClipTextConfig))
    values = {"original_size": [8 * height, 8 * width], "crop_coords_top_left": [0, 0], "aesthetic_score": [6]}
    values["target_size"] = values["original_size"]
    numbers = [n for e in embedders if isinstance(e, SizeEmbedderConfig) for n in values[e.input_key]]
    return {
        "x": torch.randn(1, model.network.in_channels, height, width, generator=generator),
        "t": torch.tensor([601.0]),
        "crossattn": torch.randn(1, 77, model.network.context_dim, generator=generator),
        "pooled": torch.randn(1, pooled, generator=generator),
        "numbers": torch.tensor([numbers], dtype=torch.float32),
    }


def outdim(model: ModelConfig) -> int:
    return next(e.outdim for e in model.conditioner.embedders if isinstance(e, SizeEmbedderConfig))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_ours(preset: str, file: Path) -> tuple[Any, int]:
    """Our network, filled by our loader; and the bytes of its weights."""
    with torch.device("meta"):
        unet = UNet(load_preset(preset).model.network)
    load_into(unet, file, PREFIX, dtype=torch.float32)
    return unet.eval(), sum(p.nbytes for p in unet.parameters())


def load_theirs(preset: str, file: Path) -> tuple[Any, int]:
    """diffusers' network, filled from the file without any code of ours but the table of names."""
    from safetensors import safe_open
    from support_diffusers import diffusers_unet

    model = load_preset(preset).model
    with safe_open(file, "pt") as tensors:
        keys = [key for key in tensors.keys() if key.startswith(PREFIX)]  # noqa: SIM118 (it is no mapping)
        weights = {key.removeprefix(PREFIX): tensors.get_tensor(key).float() for key in keys}
    size = sum(w.nbytes for w in weights.values())
    return diffusers_unet(weights, model.network, addition_time_embed_dim=outdim(model)), size


@torch.inference_mode()
def measure(whose: str, preset: str, file: Path, size: tuple[int, int], out: Path) -> Measurement:
    """Load and call one of the two; runs in a process of its own."""
    if whose == "diffusers":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import support_diffusers  # noqa: F401  (before the baseline of memory and time)
    imports = peak_bytes()
    model = load_preset(preset).model
    given = inputs(model, *size)
    start = time.perf_counter()
    network, weights_bytes = load_ours(preset, file) if whose == "ours" else load_theirs(preset, file)
    loaded, load_memory = time.perf_counter(), peak_bytes() - imports
    x, t, crossattn, pooled, numbers = given.values()
    if whose == "ours":
        vector = torch.cat([pooled, sinusoid(numbers.flatten(), outdim(model)).view(1, -1)], dim=1)
        output = network(x, t, crossattn, vector)
    else:
        output = network(x, t, crossattn, added_cond_kwargs={"text_embeds": pooled, "time_ids": numbers}).sample
    called = time.perf_counter()
    torch.save(output.clone(), out)
    return Measurement(out, weights_bytes, loaded - start, load_memory, called - loaded, peak_bytes() - imports)


def compare(preset: str, file: Path, size: tuple[int, int]) -> str:
    """Run both and return the rows of the table."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for whose in ("ours", "diffusers"):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                run = alone.submit(measure, whose, preset, file, size, Path(folder) / f"{whose}.pt")
                results[whose] = run.result()
        ours, theirs = (torch.load(r.output, weights_only=True).double() for r in results.values())
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    rows = []
    for whose, r in results.items():
        ratio = r.load_memory_bytes / r.weights_bytes
        figures = (
            f"{r.weights_bytes / 1e9:.2f} | {r.load_s:.1f} | {ratio:.3f} | {r.call_s:.1f} | {r.memory_bytes / 1e9:.2f}"
        )
        last = f"{error:.2e}" if whose == "ours" else f"(std {theirs.std():.3f})"
        rows.append(f"| {preset} | {whose} | {figures} | {last} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PRESET=FILE")
    parser.add_argument("--latent", default="32x32", metavar="HEIGHTxWIDTH", help="size of the latent (default 32x32)")
    args = parser.parse_args()
    height, width = (int(n) for n in args.latent.split("x"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, latent {height}x{width}\n")
    print("| model | network | weights GB | load s | load peak / weights | call s | peak GB | relative error |")
    print("|---|---|---|---|---|---|---|---|")
    for pair in args.pairs:
        preset, _, file = pair.partition("=")
        print(compare(preset, Path(file), (height, width)), flush=True)


if __name__ == "__main__":
    main()
