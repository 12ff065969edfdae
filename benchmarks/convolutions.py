"""SDXL's convolutions on a GPU with what stands around them: a library's against Winograd's products.

    PYTHONPATH=. python benchmarks/convolutions.py [--batch 2 --batch 8]

In microseconds, as benchmarks/kernels.py has them. "first" is norm, SiLU and convolution, "second" the same with the
block's sum behind it; beside each of ours stand its parts: sums of inputs, products, outputs.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from kernels import Way, drawn, sets_of, time_us
from torch import Tensor

from sdxl_core.ops.kernels.doubling import doubled, doubling_sums, interleave
from sdxl_core.ops.kernels.joins import join
from sdxl_core.ops.kernels.norms import add, group_norm
from sdxl_core.ops.kernels.winograd import normed_sums, outputs

CONVOLUTIONS = [  # (c_in, c_out, side)
    *((320, 320, 128), (640, 320, 128), (960, 320, 128)),
    *((320, 640, 64), (640, 640, 64), (960, 640, 64), (1280, 640, 64), (1920, 640, 64)),
    *((640, 1280, 32), (1280, 1280, 32), (1920, 1280, 32), (2560, 1280, 32)),
]
DOUBLED = [(1280, 32), (640, 64)]
JOINED = [(1280, 1280, 32), (1280, 640, 32), (1280, 640, 64), (640, 320, 64), (640, 320, 128), (320, 320, 128)]


def row(label: str, sets: int, *ways: Way) -> None:
    cells = ("-" if us is None else f"{us:.1f}" for us in (time_us(way, sets) for way in ways))
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


def convolution(b: int, c: int, c_out: int, side: int) -> None:
    map_bytes = 2 * b * side * side
    sets = sets_of(map_bytes * (c + c_out))
    x, skip = ([drawn(b, width, side, side) for _ in range(sets)] for width in (c, c_out))
    weight, bias, shift, owed = drawn(c), drawn(c), drawn(b, c), drawn(c_out)
    conv = drawn(c_out, c, 3, 3)
    sums = [normed_sums(x[0], weight, bias, 32, 1e-5, shift=shift) for _ in range(2)]
    summed = drawn(16, c_out, c)
    made = [torch.bmm(sums[0], summed.mT) for _ in range(2)]

    def normed(i: int) -> Tensor:
        return group_norm(x[i], weight, bias, 32, 1e-5, silu=True, shift=shift)

    def sums_of(i: int) -> Tensor:
        return normed_sums(x[i], weight, bias, 32, 1e-5, shift=shift)

    def products(i: int) -> Tensor:
        return torch.bmm(sums_of(i), summed.mT)

    row(
        f"{b}x {c} to {c_out}, {side}x{side}",
        sets,
        lambda i: F.conv2d(normed(i), conv, padding=1),
        lambda i: outputs(products(i), x[i]),
        lambda i: add(skip[i], F.conv2d(normed(i), conv, padding=1), owed),
        lambda i: outputs(products(i), x[i], skip[i], owed),
        normed,
        sums_of,
        lambda i: torch.bmm(sums[i % 2], summed.mT),
        lambda i: outputs(made[i % 2], x[i]),
        lambda i: outputs(made[i % 2], x[i], skip[i], owed),
    )


def doubling(b: int, c: int, side: int) -> None:
    sets = sets_of(2 * b * c * side * side * 5)
    x, bias = [drawn(b, c, side, side) for _ in range(sets)], drawn(c)
    joined, nine = drawn(4 * c, c, 2, 2), drawn(9, c, c)
    sums = [doubling_sums(x[0]) for _ in range(2)]
    made = [torch.bmm(sums[0], nine.mT) for _ in range(2)]
    row(
        f"{b}x {c}, {side}x{side}",
        sets,
        lambda i: interleave(F.conv2d(x[i], joined, padding=1), bias),
        lambda i: doubled(torch.bmm(doubling_sums(x[i]), nine.mT), x[i], bias),
        lambda i: doubling_sums(x[i]),
        lambda i: torch.bmm(sums[i % 2], nine.mT),
        lambda i: doubled(made[i % 2], x[i], bias),
    )


def joining(b: int, c: int, other: int, side: int) -> None:
    sets = sets_of(2 * b * (c + other) * side * side)
    x, y = ([drawn(b, width, side, side) for _ in range(sets)] for width in (c, other))
    cat: Callable[[int], Tensor] = lambda i: torch.cat([x[i], y[i]], dim=1)  # noqa: E731
    row(f"{b}x {c} and {other}, {side}x{side}", sets, cat, lambda i: join(x[i], y[i]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", help="rows of a call; may be repeated")
    batches = parser.parse_args().batch or [2, 8]
    with torch.inference_mode():
        print("| | first | ours | second | ours | norm | sums | products | outputs | and sum |\n" + "|---" * 10 + "|")
        for b in batches:
            for case in CONVOLUTIONS:
                convolution(b, *case)
        print("\n| doubling | library | ours | sums | products | outputs |\n" + "|---" * 6 + "|")
        for b in batches:
            for doubled_case in DOUBLED:
                doubling(b, *doubled_case)
        print("\n| joining | PyTorch | ours |\n" + "|---" * 3 + "|")
        for b in batches:
            for joined_case in JOINED:
                joining(b, *joined_case)


if __name__ == "__main__":
    main()
