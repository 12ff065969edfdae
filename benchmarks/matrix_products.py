"""The matrix products that a guided step of SDXL is mostly made of: libraries against this project's kernels, on a GPU.

    PYTHONPATH=. python benchmarks/matrix_products.py [--dtype bfloat16 --json FILE]

Times are medians of replayed CUDA graphs, in microseconds, on random numbers in buffers that take turns and are more
than the L2 cache holds. Errors are relative distances from float32 on the same numbers, of the product alone where a
residual is added. Of a gated layer (GEGLU), cuBLAS means that product and one kernel more for bias and gate, in eight
bits ours writes eight bits too; a residual is added by cuBLAS in place, in eight bits it is left to what follows. Every
matrix of eight bits has one scale, and the rounding of the input is no part of the time. Behind ours stands the tiling:
rows x columns x depth, warps, stages, t for tiles by the copy engine, l for each lasting program of a
multiprocessor.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.ops.fp8 import quantised, weight_power
from sdxl_core.ops.kernels.products import Tiling, gated_in_eight_bits, gated_linear
from sdxl_core.ops.woven import weave

CACHE_BYTES = 128e6  # more than twice the L2 cache of any GPU so far
REPLAYS = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer: k numbers in, n out, for each of so many rows (1 and 4 pictures).

    Args:
        kind: "plain", "added" to a residual, or "gated" (GEGLU, with a bias).
    """

    name: str
    kind: str
    k: int
    n: int
    rows: tuple[int, ...]


SHAPES = (
    Shape("geglu 1280", "gated", 1280, 5120, (2048, 8192)),
    Shape("feed-forward's second 1280", "added", 5120, 1280, (2048, 8192)),
    Shape("q, k, v 1280", "plain", 1280, 3840, (2048, 8192)),
    Shape("square 1280", "added", 1280, 1280, (2048, 8192)),
    Shape("geglu 640", "gated", 640, 2560, (8192, 32768)),
    Shape("feed-forward's second 640", "added", 2560, 640, (8192, 32768)),
    Shape("q, k, v 640", "plain", 640, 1920, (8192, 32768)),
    Shape("square 640", "added", 640, 640, (8192, 32768)),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One that is tried, of a gated layer: without a gate cuBLAS was always faster."""

    eight_bits: bool
    tiling: Tiling

    def __str__(self) -> str:
        how = self.tiling
        marks = "t" * how.described + "l" * how.lasting
        return f"{how.rows}x{how.columns}x{how.depth}/{how.warps}/{how.stages}{marks}"


def candidates() -> Iterator[Kernel]:
    """In eight bits a tile of the same bytes is twice as deep."""
    for eight_bits in (False, True):
        deep = 128 if eight_bits else 64
        cuts = [(128, 128, 8, 3), (128, 128, 8, 4), (128, 64, 4, 3), (256, 64, 8, 4)]
        tilings = [Tiling(rows, columns, deep, *how, described=True) for rows, columns, *how in cuts]
        tilings += [Tiling(128, 128, deep, 8, stages, described=True, lasting=1) for stages in (3, 4)]
        tilings.append(Tiling(128, 128, 2 * deep, 8, 2, described=True, lasting=1))
        # While one program makes gates another multiplies.
        tilings += [Tiling(128, 64, deep, 4, stages, described=True, lasting=many) for many, stages in ((2, 3), (3, 2))]
        yield from (Kernel(eight_bits, tiling) for tiling in tilings)


@dataclass(frozen=True, slots=True)
class Inputs:
    x: Tensor
    weight: Tensor
    woven: Tensor
    bias: Tensor | None
    residual: Tensor | None
    x8: Tensor
    weight8: Tensor
    woven8: Tensor
    scales: tuple[Tensor, Tensor]

    @property
    def nbytes(self) -> int:
        """That a layer in 16 bit reads."""
        return self.x.nbytes + self.weight.nbytes + (0 if self.residual is None else self.residual.nbytes)


def inputs(shape: Shape, rows: int, dtype: torch.dtype, draw: torch.Generator) -> Inputs:
    def drawn(*size: int) -> Tensor:
        return torch.randn(size, device="cuda", generator=draw).to(dtype)

    gated = shape.kind == "gated"
    x, weight = drawn(rows, shape.k), drawn(2 * shape.n if gated else shape.n, shape.k) * shape.k**-0.5
    bias, residual = drawn(len(weight)) if gated else None, drawn(rows, shape.n) if shape.kind == "added" else None
    power = weight_power(weight)
    weight8, scales = (
        quantised(weight, power),
        (torch.tensor(1 / 8, device="cuda"), torch.tensor(1 / power, device="cuda")),
    )
    return Inputs(x, weight, weave(weight), bias, residual, quantised(x, 8), weight8, weave(weight8), scales)


def in_float32(shape: Shape, given: Inputs) -> Tensor:
    out = F.linear(given.x.float(), given.weight.float(), None if given.bias is None else given.bias.float())
    if shape.kind == "gated":
        value, gate = out.chunk(2, 1)
        return value * F.gelu(gate)
    return out if given.residual is None else out + given.residual.float()


def by_kernel(kernel: Kernel, given: Inputs) -> Callable[[Inputs], Tensor]:
    """Scales, which are numbers of the call, are those of `given` for all."""
    scale = float(given.scales[0] * given.scales[1])

    def run(given: Inputs) -> Tensor:
        if not kernel.eight_bits:
            return gated_linear(given.x, given.woven, given.bias, kernel.tiling)
        assert given.bias is not None
        return gated_in_eight_bits(given.x8, given.woven8, given.bias, scale, scale, kernel.tiling)

    return run


def by_library(given: Inputs) -> Tensor:
    """cuBLAS; a residual is added by it into the residual's own memory."""
    from sdxl_core.ops.kernels.gates import geglu

    if given.residual is not None:
        return given.residual.addmm_(given.x, given.weight.t())
    out = F.linear(given.x, given.weight)
    return out if given.bias is None else geglu(out, given.bias)


def in_eight_bits(given: Inputs) -> Tensor:
    """cuBLASLt; a residual is left to what follows."""
    from sdxl_core.ops.kernels.eight_bits import TRITON

    return TRITON.linear(given.x8, given.weight8, *given.scales, given.x.dtype)


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


def compile_one(task: tuple[Kernel, str]) -> str | None:
    """Leave a kernel in Triton's cache; in a process of its own."""
    kernel, dtype = task
    try:
        shape = Shape("", "gated", 128, 256, (256,))
        given = inputs(shape, 256, getattr(torch, dtype), torch.Generator("cuda").manual_seed(0))
        by_kernel(kernel, given)(given)
        torch.cuda.synchronize()
    except Exception as error:  # what a GPU has no room for is no candidate
        return f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return None


def compile_all(dtype: str, workers: int) -> list[Kernel]:
    """The candidates that this GPU can run."""
    kernels = list(candidates())
    began = time.perf_counter()
    # Forked before CUDA is begun here: so each has torch at once.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        failed = list(pool.map(compile_one, ((kernel, dtype) for kernel in kernels)))
    for kernel, reason in zip(kernels, failed, strict=True):
        if reason is not None:
            print(f"cannot be had: {8 if kernel.eight_bits else 16} bit, {kernel}: {reason}")
    print(f"{len(kernels)} kernels in {time.perf_counter() - began:.1f} s")
    return [kernel for kernel, reason in zip(kernels, failed, strict=True) if reason is None]


def measure(shape: Shape, rows: int, dtype: torch.dtype, kernels: Sequence[Kernel], seed: int) -> dict[str, Any]:
    draw = torch.Generator("cuda").manual_seed(seed)
    first = inputs(shape, rows, dtype, draw)
    one = first.nbytes + rows * shape.n * first.x.itemsize
    sets = [inputs(shape, rows, dtype, draw) for _ in range(max(2, int(CACHE_BYTES / one) + 1))]
    exact = in_float32(shape, first)
    of_product = exact if first.residual is None else exact - first.residual.float()
    work = 2 * rows * first.weight.numel()
    found: list[dict[str, Any]] = []

    def take(kind: str, run: Callable[[Inputs], Tensor], kernel: Kernel | None = None, against: Tensor = exact) -> None:
        told = {"kind": kind, "kernel": None if kernel is None else asdict(kernel), "short": str(kernel or "")}
        try:
            residual = None if first.residual is None else first.residual.clone()  # cuBLAS writes into it
            error = float((run(replace(first, residual=residual)).float() - against).norm() / of_product.norm())
            time_us = microseconds(run, sets)
        except (RuntimeError, ValueError) as failure:
            found.append({**told, "why_not": str(failure).strip().splitlines()[0][:160]})
        else:
            found.append({**told, "time_us": time_us, "tflops": work / time_us / 1e6, "error": error})

    take("cuBLAS", by_library)
    if shape.kind == "gated":
        for kernel in kernels:
            take("ours in 8 bit" if kernel.eight_bits else "ours", by_kernel(kernel, first), kernel)
    else:
        take("cuBLASLt in 8 bit", in_eight_bits, against=of_product)
    return {**asdict(shape), "m": rows, "found": found}


def tell(row: dict[str, Any]) -> None:
    """The best of each kind."""
    print(f"{row['name']}, m {row['m']}")
    for kind in dict.fromkeys(entry["kind"] for entry in row["found"]):
        entries = [entry for entry in row["found"] if entry["kind"] == kind]
        timed = sorted((entry for entry in entries if "time_us" in entry), key=lambda entry: entry["time_us"])
        if not timed:
            print(f"  {kind:22} {entries[0]['why_not']}")
            continue
        best = timed[0]
        others = "; ".join(f"{entry['short']} {entry['time_us']:.1f}" for entry in timed[1:2])
        line = f"  {kind:22} {best['time_us']:7.1f} us {best['tflops']:6.0f} TFLOP/s  error {best['error']:.1e}"
        print(line + f"  {best['short']}" * bool(best["short"]) + f" ({others})" * bool(others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--workers", type=int, default=14, help="processes that compile")
    parser.add_argument("--only", help="shapes whose name has this in it")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31)
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    kernels = compile_all(args.dtype, args.workers)
    torch.set_float32_matmul_precision("highest")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.dtype}, seed {args.seed}")
    rows = []
    began = time.perf_counter()
    with torch.inference_mode():
        for shape in SHAPES:
            if args.only is not None and args.only not in shape.name:
                continue
            for m in shape.rows:
                rows.append(measure(shape, m, getattr(torch, args.dtype), kernels, args.seed))
                tell(rows[-1])
                torch.cuda.empty_cache()
    print(f"{time.perf_counter() - began:.1f} s")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
