"""The matrix products that a guided step of SDXL is mostly made of: libraries against this project's kernels, on a GPU.

    PYTHONPATH=. python benchmarks/matrix_products.py [--dtype bfloat16 --json FILE]

Times are medians of replayed CUDA graphs, in microseconds, on random numbers in buffers that take turns and are more
than the L2 cache holds, with the bias added. Errors are relative distances from float32 on the same numbers. Of a gated
layer (GEGLU), cuBLAS and _scaled_mm mean that product and one kernel more for bias and gate. For eight bits the
rounding of the input is not in the time but beside it ("rounding").
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.ops.fp8 import Scaled
from sdxl_core.ops.kernels.products import Tiling, linear, scaled_linear

CACHE_BYTES = 128e6  # more than twice the L2 cache of any GPU so far
REPLAYS = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer: k numbers in, n out, for each of so many rows (1 and 4 pictures)."""

    name: str
    k: int
    n: int
    rows: tuple[int, ...]
    gated: bool = False


SHAPES = (
    Shape("geglu 1280", 1280, 5120, (2048, 8192), gated=True),
    Shape("feed-forward's second 1280", 5120, 1280, (2048, 8192)),
    Shape("q, k, v 1280", 1280, 3840, (2048, 8192)),
    Shape("square 1280", 1280, 1280, (2048, 8192)),
    Shape("geglu 640", 640, 2560, (8192, 32768), gated=True),
    Shape("feed-forward's second 640", 2560, 640, (8192, 32768)),
    Shape("q, k, v 640", 640, 1920, (8192, 32768)),
    Shape("square 640", 640, 640, (8192, 32768)),
)


def candidates(*, eight_bits: bool, gated: bool) -> list[Tiling]:
    """The tilings that are tried; in eight bits a tile of the same bytes is twice as deep."""
    deep = 128 if eight_bits else 64
    cuts = (
        [
            (128, 128, deep, 8, 3),
            (128, 128, deep, 8, 4),
            (128, 64, deep, 4, 3),
            (256, 64, deep, 8, 4),
            *([] if eight_bits else [(64, 128, deep, 4, 2), (64, 128, 32, 4, 4)]),  # there the registers do not suffice
        ]
        if gated
        else [
            (128, 128, deep, 8, 4),
            (128, 128, deep, 4, 3),
            (128, 256, deep, 8, 4),
            (256, 128, deep, 8, 4),
            (64, 256, deep, 4, 4),
            (128, 64, deep, 4, 4),
            (64, 128, deep, 4, 4),
        ]
    )
    one_each = [Tiling(*cut, described=True) for cut in cuts]
    lasting = [Tiling(128, 128, deep, 8, 3, described=True, lasting=True)]
    if not gated:
        lasting.append(Tiling(128, 256, deep, 8, 3, described=True, lasting=True))
    exact = [Tiling(*cut, described=True, exact=True) for cut in ((128, 128, deep, 8, 3), (128, 64, deep, 4, 3))]
    return [*one_each, *lasting, *(exact if eight_bits else [Tiling(128, 128, deep, 8, 3)])]


@dataclass(frozen=True, slots=True)
class Inputs:
    x: Tensor
    weight: Tensor
    bias: Tensor
    x8: Scaled
    weight8: Scaled


def inputs(shape: Shape, rows: int, dtype: torch.dtype, draw: torch.Generator) -> Inputs:
    from sdxl_core.ops.kernels.quantise import quantise

    outs = 2 * shape.n if shape.gated else shape.n
    x = torch.randn(rows, shape.k, device="cuda", generator=draw).to(dtype)
    weight = (torch.randn(outs, shape.k, device="cuda", generator=draw) * shape.k**-0.5).to(dtype)
    bias = torch.randn(outs, device="cuda", generator=draw).to(dtype)
    return Inputs(x, weight, bias, quantise(x), quantise(weight))


def in_float32(shape: Shape, given: Inputs) -> Tensor:
    out = F.linear(given.x.float(), given.weight.float(), given.bias.float())
    if shape.gated:
        value, gate = out.chunk(2, 1)
        return value * F.gelu(gate)
    return out


def by_tiling(shape: Shape, tiling: Tiling, *, eight_bits: bool) -> Callable[[Inputs], Tensor]:
    def run(given: Inputs) -> Tensor:
        how = {"gated": shape.gated, "tiling": tiling}
        if eight_bits:
            return scaled_linear(given.x8, given.weight8, given.bias, dtype=given.x.dtype, **how)
        return linear(given.x, given.weight, given.bias, **how)

    return run


def by_library(shape: Shape, *, eight_bits: bool, fast: bool = False) -> Callable[[Inputs], Tensor]:
    from sdxl_core.ops.kernels.gates import geglu

    def run(given: Inputs) -> Tensor:
        bias = None if shape.gated else given.bias  # the gate's kernel adds it
        if eight_bits:
            out = torch._scaled_mm(
                given.x8.values,
                given.weight8.values.t(),
                scale_a=given.x8.scale[:, None],
                scale_b=given.weight8.scale[None, :],
                bias=bias,
                out_dtype=given.x.dtype,
                use_fast_accum=fast,
            )
        else:
            out = F.linear(given.x, given.weight, bias)
        return geglu(out, given.bias) if shape.gated else out

    return run


def microseconds(run: Callable[[Inputs], object], sets: Sequence[Inputs]) -> float:
    """The median time of a call, the calls on all sets in one graph."""
    for given in sets[:2]:
        run(given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for given in sets:
            run(given)
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) * 1e3 / len(sets))
    return statistics.median(times)


def compile_one(task: tuple[bool, bool, Tiling, str]) -> str | None:
    """Leave a kernel in Triton's cache; in a process of its own."""
    eight_bits, gated, tiling, dtype = task
    try:
        shape = Shape("", 128, 256, (256,), gated)
        given = inputs(shape, 256, getattr(torch, dtype), torch.Generator("cuda").manual_seed(0))
        by_tiling(shape, tiling, eight_bits=eight_bits)(given)
        torch.cuda.synchronize()
    except Exception as error:  # what a GPU has no room for is no candidate
        return f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return None


def compile_all(dtype: str, workers: int) -> list[tuple[bool, bool, Tiling]]:
    """The candidates that this GPU can run: (in eight bits, gated, tiling)."""
    tasks = [
        (eight_bits, gated, tiling, dtype)
        for eight_bits in (False, True)
        for gated in (True, False)
        for tiling in candidates(eight_bits=eight_bits, gated=gated)
    ]
    began = time.perf_counter()
    # Forked before CUDA is begun here: so each has torch at once.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        failed = list(pool.map(compile_one, tasks))
    for task, reason in zip(tasks, failed, strict=True):
        if reason is not None:
            print(f"cannot be had: {task}: {reason}")
    print(f"{len(tasks)} kernels in {time.perf_counter() - began:.1f} s")
    return [task[:3] for task, reason in zip(tasks, failed, strict=True) if reason is None]


def short(tiling: Tiling) -> str:
    marks = zip("tpx", (tiling.described, tiling.lasting, tiling.exact), strict=True)
    cut = f"{tiling.rows}x{tiling.columns}x{tiling.depth}/{tiling.warps}/{tiling.stages}"
    return cut + "".join(mark for mark, is_so in marks if is_so)


def measure(shape: Shape, rows: int, dtype: torch.dtype, known: list[tuple[bool, bool, Tiling]], seed: int) -> dict:
    from sdxl_core.ops.kernels.quantise import quantise

    draw = torch.Generator("cuda").manual_seed(seed)
    first = inputs(shape, rows, dtype, draw)
    one = first.x.nbytes + first.weight.nbytes + rows * shape.n * first.x.itemsize
    sets = [first, *(inputs(shape, rows, dtype, draw) for _ in range(max(2, int(CACHE_BYTES / one) + 1)))]
    exact = in_float32(shape, first)
    work = 2 * rows * first.weight.numel()
    found = []

    def take(kind: str, run: Callable[[Inputs], Tensor], tiling: Tiling | None = None) -> None:
        told = {"kind": kind, "tiling": None if tiling is None else asdict(tiling), "short": tiling and short(tiling)}
        try:
            error = float((run(first).float() - exact).norm() / exact.norm())
            time_us = microseconds(run, sets)
        except RuntimeError as failure:
            found.append({**told, "why_not": str(failure).strip().splitlines()[0][:160]})
            return
        except ValueError as failure:
            found.append({**told, "why_not": str(failure)[:160]})
            return
        found.append({**told, "time_us": time_us, "tflops": work / time_us / 1e6, "error": error})

    take("cuBLAS", by_library(shape, eight_bits=False))
    take("_scaled_mm", by_library(shape, eight_bits=True))
    take("_scaled_mm, fast", by_library(shape, eight_bits=True, fast=True))
    for eight_bits, gated, tiling in known:
        if gated == shape.gated:
            kind = ("ours in 8 bit, exact" if tiling.exact else "ours in 8 bit") if eight_bits else "ours"
            take(kind, by_tiling(shape, tiling, eight_bits=eight_bits), tiling)
    rounding = microseconds(lambda given: quantise(given.x), sets)
    return {"shape": shape.name, "k": shape.k, "n": shape.n, "m": rows, "rounding_us": rounding, "found": found}


def tell(row: dict) -> None:
    """The best of each kind."""
    print(f"{row['shape']}, m {row['m']}: rounding {row['rounding_us']:.1f} us")
    kinds = dict.fromkeys(entry["kind"] for entry in row["found"])
    for kind in kinds:
        entries = [entry for entry in row["found"] if entry["kind"] == kind]
        timed = sorted((entry for entry in entries if "time_us" in entry), key=lambda entry: entry["time_us"])
        if not timed:
            print(f"  {kind:22} {entries[0]['why_not']}")
            continue
        best = timed[0]
        others = "; ".join(f"{entry['short']} {entry['time_us']:.1f}" for entry in timed[1:3])
        print(
            f"  {kind:22} {best['time_us']:7.1f} us {best['tflops']:6.0f} TFLOP/s  error {best['error']:.1e}"
            f"  {best['short'] or ''}" + (f" ({others})" if others else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--workers", type=int, default=14, help="processes that compile")
    parser.add_argument("--only", help="shapes whose name has this in it")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31)
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    known = compile_all(args.dtype, args.workers)
    torch.set_float32_matmul_precision("highest")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.dtype}, seed {args.seed}")
    rows = []
    began = time.perf_counter()
    with torch.inference_mode():
        for shape in SHAPES:
            if args.only is not None and args.only not in shape.name:
                continue
            for m in shape.rows:
                rows.append(measure(shape, m, getattr(torch, args.dtype), known, args.seed))
                tell(rows[-1])
                torch.cuda.empty_cache()
    print(f"{time.perf_counter() - began:.1f} s")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
