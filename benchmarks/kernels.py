"""Every kernel of a guided step and a decoding at SDXL's sizes: ours, PyTorch's, and what memory or arithmetic allows.

One table a topic, in microseconds; a row's numbers come from CUDA graphs of that operation alone, on random inputs that
are more than the cache holds, so that neither launches nor a warm cache are in them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Way = Callable[[int], object]
"""An operation on the i-th of several equal sets of inputs, of which there are `sets`."""

HALF = torch.float16
CACHE_BYTES = 100e6  # twice the largest second-level cache
PER_TIMING_S = 0.03


def drawn(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    x = torch.randn(shape, device="cuda", dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def sets_of(set_bytes: float) -> int:
    """How many sets of inputs do not fit into the cache together."""
    return max(2, min(16, -int(-CACHE_BYTES // set_bytes)))


def time_us(way: Way, sets: int) -> float | None:
    """Median time of one call; None where it cannot run here, which is said on stderr."""
    own = torch.cuda.current_stream()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(own)
        with torch.cuda.stream(side):
            for i in range(sets):
                way(i)
        own.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(sets):
                way(i)
        graph.replay()
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        repeats = min(30, max(5, int(PER_TIMING_S / (time.perf_counter() - began))))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
        return median(before.elapsed_time(after) for before, after in pairwise(marks)) * 1000 / sets
    except Exception as error:  # what a kernel cannot do here, it says in ways of its own
        torch.cuda.set_stream(own)  # a capture that fails leaves its own
        print(f"not measured: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def table(title: str, names: Sequence[str], rows: Iterator[tuple[str, Sequence[float | None]]]) -> None:
    began = time.perf_counter()
    print(f"\n{title}\n\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for label, values in rows:
        cells = ("" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    print(f"({time.perf_counter() - began:.1f} s)")


def rate(flop: float, us: float | None) -> float | None:
    return None if us is None else flop / us / 1e6


def copy_rate() -> float:
    """Bytes a microsecond of a large copy, read and written together."""
    x = drawn(2**29)
    out = torch.empty_like(x)
    us = time_us(lambda i: out.copy_(x), 2)
    assert us is not None
    return 2 * x.nbytes / us


def product_rate() -> float:
    """TFLOP/s of a large matrix product."""
    a, b = drawn(8192, 8192), drawn(8192, 8192)
    us = time_us(lambda i: F.linear(a, b), 2)
    assert us is not None
    return 2 * 8192**3 / us / 1e6


MAPS = [  # (b, c, h, w): the UNet's, then the decoder's
    *((2, 320, 128, 128), (2, 960, 128, 128), (2, 640, 64, 64), (2, 1920, 64, 64), (2, 1280, 32, 32)),
    *((2, 2560, 32, 32), (1, 512, 128, 128), (1, 512, 256, 256), (1, 256, 512, 512), (1, 128, 1024, 1024)),
]


def group_norms(speed: float) -> None:
    from sdxl_core.ops.kernels.norms import add, group_norm

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        for shape in MAPS:
            b, c = shape[:2]
            sets = sets_of(4 * b * c * shape[2] * shape[3])
            maps, others = [drawn(*shape) for _ in range(sets)], [drawn(*shape) for _ in range(sets)]
            planes = [x.contiguous() for x in maps]
            weight, bias, shift = drawn(c), drawn(c), drawn(b, c)
            floor = 2 * maps[0].nbytes / speed

            def eager(kept: list[Tensor], i: int) -> Tensor:
                return F.silu(F.group_norm(kept[i] + shift[:, :, None, None], 32, weight, bias))  # noqa: B023

            def ours(i: int) -> Tensor:
                return group_norm(maps[i], weight, bias, 32, 1e-5, silu=True, shift=shift)  # noqa: B023

            yield (
                str(shape),
                (
                    floor,
                    time_us(ours, sets),
                    time_us(partial(eager, planes), sets),
                    time_us(partial(eager, maps), sets),
                    floor * 1.5,
                    time_us(lambda i: add(maps[i], others[i], bias), sets),  # noqa: B023
                    time_us(lambda i: maps[i] + others[i] + bias[:, None, None], sets),  # noqa: B023
                ),
            )

    names = ["floor", "norm + SiLU", "eager NCHW", "eager NHWC", "floor", "add + bias", "eager NHWC"]
    table("Group norm of map + shift, SiLU; map + map + bias; float16", names, rows())


def layer_norms(speed: float) -> None:
    from sdxl_core.ops.fp8 import FP8
    from sdxl_core.ops.kernels.gates import geglu
    from sdxl_core.ops.kernels.layer_norms import layer_norm

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        for m, c in ((2048, 1280), (8192, 1280), (8192, 640), (32768, 640)):
            sets = sets_of(2 * 2 * m * c)
            x, delta = [drawn(m, c) for _ in range(sets)], [drawn(m, c) for _ in range(sets)]
            w, b, d = drawn(c), drawn(c), drawn(c, dtype=torch.float32)
            size = x[0].nbytes / speed

            def ours(i: int, late: bool, dtype: torch.dtype) -> object:
                return layer_norm(x[i], w, b, 1e-5, delta=delta[i] if late else None, delta_bias=d, dtype=dtype)  # noqa: B023

            def eager(i: int, late: bool) -> Tensor:
                return F.layer_norm(x[i] + delta[i] if late else x[i], (c,), w, b)  # noqa: B023

            for late in (True, False):
                yield (
                    f"layer norm{' of sum' if late else ''} ({m}, {c})",
                    (
                        (4 if late else 2) * size,
                        time_us(partial(ours, late=late, dtype=HALF), sets),
                        time_us(partial(ours, late=late, dtype=FP8), sets),
                        time_us(partial(eager, late=late), sets),
                    ),
                )
        for m, n in ((2048, 5120), (8192, 2560)):
            sets = sets_of(4 * m * n)
            h, b = [drawn(m, 2 * n) for _ in range(sets)], drawn(2 * n)

            def gated(i: int) -> Tensor:
                value, gate = h[i].chunk(2, dim=1)  # noqa: B023
                return value * F.gelu(gate)

            yield (
                f"GEGLU ({m}, {n})",
                (
                    1.5 * h[0].nbytes / speed,
                    time_us(lambda i: geglu(h[i], b), sets),  # noqa: B023
                    None,
                    time_us(gated, sets),
                ),
            )

    table("Layer norm and gate, float16", ["floor", "ours", "ours to eight bits", "eager"], rows())


LINEARS = [  # (rows, in, out, calls in a guided step)
    *((2048, 1280, 10240, 60), (2048, 1280, 3840, 60), (2048, 1280, 1280, 192), (2048, 5120, 1280, 60)),
    *((8192, 640, 5120, 10), (8192, 640, 1920, 10), (8192, 640, 640, 40), (8192, 2560, 640, 10)),
    *((8192, 1280, 3840, 60), (8192, 5120, 1280, 60), (32768, 640, 1920, 10), (32768, 2560, 640, 10)),
]


def linears(speed: float) -> None:
    from sdxl_core.ops.fp8 import quantised
    from sdxl_core.ops.kernels.eight_bits import TRITON
    from sdxl_core.ops.kernels.layer_norms import layer_norm

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        one = torch.ones((), device="cuda")
        for m, k, n, calls in LINEARS:
            sets = sets_of(2 * (m * k + k * n + m * n))
            x, w = [drawn(m, k) for _ in range(sets)], [drawn(n, k) * k**-0.5 for _ in range(sets)]
            x8, w8 = [quantised(y, 8) for y in x], [quantised(y, 64) for y in w]
            b, residual = drawn(n), [drawn(m, n) for _ in range(sets)]
            p, q = drawn(n), drawn(n)

            def in_eight_bits(i: int) -> Tensor:
                return TRITON.linear(x8[i], w8[i], one, one, HALF)  # noqa: B023

            def later(i: int, multiplied: Callable[[int], Tensor]) -> object:
                return layer_norm(residual[i], p, q, 1e-5, delta=multiplied(i), delta_bias=b)  # noqa: B023

            def within(i: int) -> object:
                summed = residual[i].addmm_(x[i], w[i].T, beta=0.5)  # noqa: B023
                return layer_norm(summed, p, q, 1e-5, delta_bias=b)  # noqa: B023

            def plain(i: int) -> Tensor:
                return F.linear(x[i], w[i])  # noqa: B023

            bare, eight = time_us(plain, sets), time_us(in_eight_bits, sets)
            yield (
                f"{m}, {k}, {n} x {calls}",
                [
                    bare,
                    time_us(lambda i: F.linear(x[i], w[i], b), sets),  # noqa: B023
                    time_us(lambda i: residual[i].addmm_(x[i], w[i].T, beta=0.5), sets),  # noqa: B023
                    rate(2 * m * k * n, bare),
                    *(time_us(way, sets) for way in (partial(later, multiplied=plain), within) if n in (640, 1280)),
                    *([None] * (2 * (n not in (640, 1280)))),
                    eight,
                    rate(2 * m * k * n, eight),
                    time_us(partial(later, multiplied=in_eight_bits), sets) if n in (640, 1280) else None,
                ],
            )

    names = ["no bias", "bias", "added in place", "TFLOP/s", "then norm of sum", "added in place, then norm"]
    names += ["in eight bits", "TFLOP/s", "then norm of sum"]
    table("Linear layers, float16: rows, in, out x calls", names, rows())


CONVS = [  # (b, c, h, w, c')
    *((2, 320, 128, 128, 320), (2, 960, 128, 128, 320), (2, 640, 64, 64, 640), (2, 1920, 64, 64, 640)),
    *((2, 1280, 32, 32, 1280), (2, 2560, 32, 32, 1280), (1, 512, 128, 128, 512), (1, 512, 256, 256, 512)),
    *((1, 256, 512, 512, 256), (1, 128, 1024, 1024, 128)),
]


def convs(speed: float) -> None:
    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        for b, c, height, width, out in CONVS:
            sets = sets_of(2 * b * height * width * (c + out))
            x, w = [drawn(b, c, height, width) for _ in range(sets)], drawn(out, c, 3, 3) * (9 * c) ** -0.5
            times, bias = [], drawn(out)
            for tried, given in ((False, None), (True, None), (True, bias)):
                with torch.backends.cudnn.flags(enabled=True, benchmark=tried):
                    times.append(time_us(lambda i: F.conv2d(x[i], w, given, padding=1), sets))  # noqa: B023
            yield f"{b}, {c}, {height}, {width} to {out}", [*times, rate(18 * b * c * out * height * width, times[1])]

    table("3x3 convolutions, NHWC float16", ["as it comes", "tried", "tried, bias", "TFLOP/s of tried"], rows())


def attention(speed: float) -> None:
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        for heads, n in ((10, 4096), (20, 1024)):
            given = [drawn(2, n, 3 * heads * 64) for _ in range(4)]
            parts = [x.view(2, n, 3, heads, 64).permute(2, 0, 3, 1, 4).unbind() for x in given]
            times = []
            for backend in backends:
                with sdpa_kernel(backend):
                    times.append(time_us(lambda i: F.scaled_dot_product_attention(*parts[i]), 4))  # noqa: B023
            best = min((time for time in times if time is not None), default=None)
            yield f"{heads} heads, {n}", [*times, rate(2 * 2 * 2 * heads * n * n * 64, best)]

    table("Self-attention, batch 2, strided views, float16", ["cudnn", "flash", "efficient", "best TFLOP/s"], rows())


def words(speed: float) -> None:
    from sdxl_core.ops.attention import BACKENDS, Attention
    from sdxl_core.ops.kernels.words import LAUNCHES, attend

    kernels: list[tuple[str, Attention]] = [(name, BACKENDS[name].fn) for name in ("cudnn_first", "flash_first")]
    kernels += [(f"{how.rows} x {how.tiles}, {how.warps} warps", partial(attend, how=how)) for how in LAUNCHES]

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        for b, heads, n, keys in ATTENDED:
            sets, width = sets_of(4 * b * n * heads * 64), heads * 64
            # Keys and values of all layers are parts of one product.
            joined, queries = drawn(b, keys, 2 * sets * width), [drawn(b, n, width) for _ in range(sets)]
            kept = joined.view(b, keys, 2 * sets, heads, 64).permute(2, 0, 3, 1, 4).unbind()
            q = [x.view(b, n, heads, 64).transpose(1, 2) for x in queries]
            times = [
                time_us(lambda i: kernel(q[i], kept[2 * i], kept[2 * i + 1]), sets)  # noqa: B023
                for _, kernel in (kernels if keys == 77 else kernels[:3])
            ]
            yield f"{b}, {heads} heads, {n} to {keys}", [2 * queries[0].nbytes / speed, *times]

    table("Attention to words, float16, out of the cache", ["floor", *(name for name, _ in kernels)], rows())


ATTENDED = [
    *((2, 10, 4096, 77), (2, 20, 1024, 77), (8, 10, 4096, 77), (8, 20, 1024, 77)),
    *((2, 10, 4096, 154), (2, 20, 1024, 154), (2, 10, 4096, 231), (2, 20, 1024, 231)),
]


DOUBLED = [(2, 1280, 32, 32), (2, 640, 64, 64), (1, 512, 128, 128), (1, 512, 256, 256), (1, 256, 512, 512)]


def upsampling(speed: float) -> None:
    from sdxl_core.models.autoencoder import Upsample
    from sdxl_core.models.fused import DecoderPhaseUpsample
    from sdxl_core.models.fused_autoencoder import JoinedUpsample
    from sdxl_core.passes import first_stage_kernels

    kinds: Sequence[Callable[[Upsample], nn.Module]] = (
        lambda plain: plain,
        DecoderPhaseUpsample,
        lambda plain: JoinedUpsample(plain, first_stage_kernels()),
    )

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        for b, c, height, width in DOUBLED:
            sets = sets_of(10 * b * c * height * width)
            x = [drawn(b, c, height, width) for _ in range(sets)]
            plain = Upsample(c).to("cuda", HALF)
            layers = [kind(plain).to(memory_format=torch.channels_last) for kind in kinds]
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                times = [time_us(lambda i: layer(x[i]), sets) for layer in layers]  # noqa: B023
            flop = 2 * 16 * b * c * c * height * width
            yield f"{b}, {c}, {height}, {width}", [*times, rate(flop, min(us for us in times if us is not None))]

    names = ["plain", "phases", "joined", "TFLOP/s of the best"]
    table("Doubling and 3x3 convolution, NHWC float16", names, rows())


def norm_cuts(speed: float) -> None:
    from sdxl_core.ops.kernels import norms

    def rows() -> Iterator[tuple[str, Sequence[float | None]]]:
        chosen = norms._PROGRAMS, norms._STAGES
        for shape in ((2, 320, 128, 128), (2, 1280, 32, 32), (1, 128, 1024, 1024)):
            c = shape[1]
            sets = sets_of(4 * shape[0] * c * shape[2] * shape[3])
            maps, weight = [drawn(*shape) for _ in range(sets)], drawn(c)
            times = []
            for norms._PROGRAMS, norms._STAGES in CUTS:

                def ours(i: int) -> Tensor:
                    return norms.group_norm(maps[i], weight, weight, 32, 1e-5, silu=True)  # noqa: B023

                times.append(time_us(ours, sets))
            yield str(shape), times
        norms._PROGRAMS, norms._STAGES = chosen

    table("Group norm, SiLU: programs x stages", [f"{programs} x {stages}" for programs, stages in CUTS], rows())


CUTS = [(128, 3), (256, 1), (256, 3), (512, 3), (1024, 3)]

TOPICS = {
    "group_norms": group_norms,
    "layer_norms": layer_norms,
    "linears": linears,
    "convs": convs,
    "attention": attention,
    "words": words,
    "upsampling": upsampling,
    "norm_cuts": norm_cuts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", nargs="*", help=f"of {', '.join(TOPICS)}; default: all")
    chosen = parser.parse_args().topic or list(TOPICS)
    with torch.inference_mode():
        speed = copy_rate()
        rates = f"copy {speed / 1e6:.3g} TB/s, product {product_rate():.3g} TFLOP/s in float16"
        print(f"{torch.cuda.get_device_name()}: {rates}")
        for topic in chosen:
            TOPICS[topic](speed)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
