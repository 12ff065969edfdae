"""The first stage on a GPU in several ways: milliseconds, the share of each kind of kernel, the error against float32.

PYTHONPATH=. python benchmarks/decode_variants.py [--size 1024x1024 --runs 10 --kernels 25]
"""

import argparse
import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdxl_core.config import FirstStageConfig
from sdxl_core.flops import decoder_work, encoder_work
from sdxl_core.models.autoencoder import AttnBlock, AutoencoderKL, Upsample
from sdxl_core.models.fused import DecoderPhaseUpsample
from sdxl_core.models.fused_autoencoder import (
    SCORES_BYTES,
    Doubling,
    FirstStageKernels,
    JoinedUpsample,
    fuse_first_stage,
)
from sdxl_core.models.safe_half import carry_small
from sdxl_core.ops.attention import Attention, in_query_chunks, sdpa, wide_scores, written_out
from sdxl_core.passes import first_stage_kernels

TINY = FirstStageConfig(ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1)
FLOAT16, BFLOAT16, FLOAT32 = torch.float16, torch.bfloat16, torch.float32

KINDS = {
    "norms and sums": (
        "_measure",
        "_normalise",
        "_add",
        "_softmax",
        "_interleave",
        "group_norm",
        "GroupNorm",
        "RowwiseMoments",
    ),
    "convolutions and products": ("conv", "gemm", "cutlass", "xmma", "cudnn", "nvjet", "wgrad", "dgrad", "fprop"),
    "attention": ("fmha", "attention", "flash"),
    "other": ("",),
}
"""Words in the names of kernels; the first kind that has one is theirs."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run it.

    Args:
        title: for the table.
        dtype: of weights and maps.
        last: whether channels are last.
        fused: whether its blocks are the fused ones.
        safe: whether maps are carried small.
        doubling: of the decoder; None for the plain one.
        attention: of kernels; None for the layer's own.
        search: whether cuDNN tries its algorithms first.
        exact: float32 without TF32.
        padded: whether the decoder's last convolution makes eight channels, of which three count.
        rows: pictures at once.
    """

    title: str
    dtype: torch.dtype = FLOAT16
    last: bool = True
    fused: bool = True
    safe: bool = True
    doubling: Doubling | None = JoinedUpsample
    attention: Callable[[FirstStageKernels], Attention] | None = None
    search: bool = False
    exact: bool = False
    padded: bool = False
    rows: int = 1


def _wide(block_bytes: int) -> Callable[[FirstStageKernels], Attention]:
    return lambda kernels: in_query_chunks(partial(wide_scores, softmax=kernels.softmax), block_bytes)


def _by_phases(layer: Upsample, _: FirstStageKernels) -> Upsample:
    return DecoderPhaseUpsample(layer)


PLAIN = partial(Way, last=False, fused=False, safe=False, doubling=None)
WAYS = [
    PLAIN("float32, without TF32", FLOAT32, exact=True),
    PLAIN("float32", FLOAT32),
    PLAIN("bfloat16", BFLOAT16),
    PLAIN("bfloat16, channels last", BFLOAT16, last=True),
    Way("bfloat16, fused", BFLOAT16, safe=False),
    PLAIN("float16, carried small", safe=True),
    Way("float16, fused: as it is run"),
    Way("  doubling by four convolutions", doubling=_by_phases),
    Way("  doubling plain", doubling=None),
    Way("  attention by PyTorch", attention=lambda _: sdpa),
    Way("  attention written out in float16", attention=lambda _: in_query_chunks(written_out, SCORES_BYTES)),
    Way("  attention, 2048 queries at a time", attention=_wide(SCORES_BYTES // 2)),
    Way("  attention, all queries at once", attention=_wide(2**40)),
    Way("  cuDNN tries its algorithms", search=True),
    Way("  last convolution to eight channels", padded=True),
    Way("  four pictures at once, each", rows=4),
]


def built(plain: AutoencoderKL, way: Way, kernels: FirstStageKernels) -> AutoencoderKL:
    """A first stage that runs this way."""
    model = copy.deepcopy(plain)
    if way.safe:
        carry_small(model)
    model = model.to(way.dtype)
    if way.doubling is not None:
        for level in model.decoder.up:
            if isinstance(level.upsample, Upsample):
                level.upsample = DecoderPhaseUpsample(level.upsample)
    if way.last:
        model = model.to(memory_format=torch.channels_last)
    if way.fused:
        fuse_first_stage(model, kernels, way.doubling or _by_phases)
    if way.padded:
        last = model.decoder.conv_out
        weight, bias = (torch.cat([part, torch.zeros_like(part)] * 2)[:8] for part in last.parameters())
        last.weight.data, last.bias.data = weight.contiguous(memory_format=torch.channels_last), bias  # type: ignore[union-attr]
    for layer in model.modules():
        if isinstance(layer, AttnBlock) and way.attention is not None:
            layer.attention = way.attention(kernels)
    return model


def random_model(config: FirstStageConfig, device: torch.device) -> AutoencoderKL:
    """With weights that keep maps near unit size, drawn on the device."""
    with device:
        model = AutoencoderKL(config)
        generator = torch.Generator(device).manual_seed(time.time_ns() % 2**31)
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                values /= parameter[0].numel() ** 0.5
            else:
                values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
            parameter.data.copy_(values)
    return model.eval().requires_grad_(False)


def times_ms(run: Callable[[], object], runs: int, device: torch.device) -> list[float]:
    """Of single runs, each with the device waited for."""
    taken = []
    for _ in range(runs + 2):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        taken.append(1e3 * (time.perf_counter() - began))
    return taken[2:]


def queued_ms(run: Callable[[], object], device: torch.device) -> float:
    """How long Python takes to queue a run."""
    _wait(device)
    began = time.perf_counter()
    run()
    taken = 1e3 * (time.perf_counter() - began)
    _wait(device)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show_kernels(title: str, run: Callable[[], object], count: int) -> None:
    """The share of each kind of kernel, and the longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    kinds: Counter[str] = Counter()
    for event in events:
        kind = next(kind for kind, words in KINDS.items() if any(word in event.key for word in words))
        kinds[kind] += event.self_device_time_total / 1e3
    launches = sum(event.count for event in events)
    shares = ", ".join(f"{kind} {taken:.2f}" for kind, taken in kinds.most_common())
    print(f"\n{title}: {launches} kernels, {sum(kinds.values()):.2f} ms: {shares}")
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:count]:
        print(f"  {event.self_device_time_total / 1e3:7.3f} ms {event.count:4d}x  {event.key[:110]}")


def measure(plain: AutoencoderKL, given: Tensor, ways: list[Way], decoding: bool, args: argparse.Namespace) -> None:
    device = given.device
    kernels = first_stage_kernels()
    exact: Tensor | None = None
    shown: Callable[[], object] | None = None
    work = (decoder_work if decoding else encoder_work)(plain.config, args.size).total
    print(f"\n{'decode' if decoding else 'encode'} {args.size[1]}x{args.size[0]}, {work / 1e12:.2f} TFLOP as written")
    print(f"{'way':<40} {'ms':>8} {'p90':>8} {'TFLOP/s':>8} {'queued':>7} {'GB':>6} {'error':>9}")
    for way in ways:
        torch.backends.cudnn.allow_tf32 = not way.exact
        torch.backends.cudnn.benchmark = way.search
        try:
            model = built(plain, way, kernels)
            x = given.to(way.dtype).repeat(way.rows, 1, 1, 1)
            run = partial(model.decode if decoding else model.encoder, x)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            answer = run()[:1].double()
            answer = answer[:, :3] if decoding else answer
            exact = answer if exact is None else exact
            error = float((answer - exact).norm() / exact.norm())
            taken = [each / way.rows for each in times_ms(run, args.runs, device)]
            queued = queued_ms(run, device)
        except RuntimeError as failure:
            print(f"{way.title:<40} {str(failure).splitlines()[0][:80]}")
            continue
        median, late = statistics.median(taken), sorted(taken)[int(0.9 * (len(taken) - 1))]
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        rate = work / median / 1e9
        print(f"{way.title:<40} {median:8.2f} {late:8.2f} {rate:8.0f} {queued:7.2f} {peak:6.2f} {error:9.2e}")
        if way.title.endswith("as it is run"):
            shown = run
        del model, run, answer
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if shown is not None and args.kernels and device.type == "cuda":
        show_kernels("as it is run", shown, args.kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x1024", help="WIDTHxHEIGHT")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--kernels", type=int, default=20, help="how many of the longest kernels are shown")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a first stage for a test of this script")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    args.size = height, width
    device, config = torch.device(args.device), TINY if args.tiny else FirstStageConfig()
    began = time.perf_counter()
    with torch.inference_mode():
        plain = random_model(config, device)
        factor = config.factor
        latent = torch.randn(1, config.z_channels, height // factor, width // factor, device=device)
        image = torch.rand(1, 3, height, width, device=device) * 2 - 1
        measure(plain, latent, WAYS, True, args)
        chosen = [way for way in WAYS if way.rows == 1 and not way.padded and "doubling" not in way.title]
        measure(plain, image, chosen, False, args)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
