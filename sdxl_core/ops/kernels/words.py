"""Attention to few keys, as a picture's to the words of its prompt: all keys of a head at once, no running maximum."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Launch:
    """How the queries are cut.

    Args:
        rows: queries of a tile; a power of two.
        tiles: of a program at most, which has the keys and values of one head at hand; a power of two.
        warps: of a program.
    """

    rows: int
    tiles: int
    warps: int


LAUNCHES = Launch(64, 4, 4), Launch(64, 2, 4), Launch(64, 1, 4), Launch(128, 2, 8)
"""What is worth timing on a Hopper GPU."""

_INTERPRETED = Launch(16, 2, 4)
"""On the CPU, where Triton interprets its kernels: for tests."""

_PROGRAMS = 2
"""For each multiprocessor, below which programs have fewer tiles."""


def attend(q: Tensor, k: Tensor, v: Tensor, how: Launch | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, scores and sums in float32, weights rounded once; costs reading `q` and writing it.

    Args:
        q: (b, heads, n, d) float16 or bfloat16, d a power of two from 16 on; its last axis dense, as of all three.
        k: (b, heads, m, d), m from 17 to 256: two tiles, of which the first is full.
        v: like k.
        how: None for the first of `LAUNCHES`.

    Returns:
        (b, heads, n, d), a view of (b, n, heads, d).
    """
    (b, heads, n, d), m = q.shape, k.shape[2]
    how = how or (LAUNCHES[0] if q.is_cuda else _INTERPRETED)
    tiles, programs = how.tiles, _PROGRAMS * _multiprocessors(q.device)
    while tiles > 1 and b * heads * triton.cdiv(n, how.rows * tiles) < programs:
        tiles //= 2
    first = triton.next_power_of_2(m) // 2
    out = q.new_empty(b, n, heads, d)
    with torch.cuda.device_of(q):
        _attend[(triton.cdiv(n, how.rows * tiles), heads, b)](
            *(q, k, v, out, n, m, tiles, d**-0.5 * _LOG2E),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            ROWS=how.rows,
            FIRST=first,
            SECOND=max(16, triton.next_power_of_2(m - first)),
            DIM=d,
            num_warps=how.warps,
            num_stages=1,  # loads are ordered by hand
        )
    return out.transpose(1, 2)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit
def _attend(
    q, k, v, out, n, m, tiles, scale,
    q_row, q_head, q_place, k_row, k_head, k_place, v_row, v_head, v_place,
    ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    head, row, heads = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64), tl.num_programs(1)
    column, place = tl.arange(0, DIM)[None, :], tl.arange(0, ROWS)[:, None]
    begin = tl.program_id(0) * (ROWS * tiles)
    left = min(n - begin, ROWS * tiles)
    # The first queries are on their way while keys and values are, the next while weights are made of scores: not
    # earlier, for the fences before a product may wait for loads.
    q += row * q_row + head * q_head + begin.to(tl.int64) * q_place
    query = tl.load(q + place * q_place + column, mask=place < left, other=0.0)
    early, late = tl.arange(0, FIRST)[:, None], FIRST + tl.arange(0, SECOND)[:, None]
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    k_early = tl.load(k + early * k_place + column).T
    k_late = tl.load(k + late * k_place + column, mask=late < m, other=0.0).T
    v_early = tl.load(v + early * v_place + column)
    v_late = tl.load(v + late * v_place + column, mask=late < m, other=0.0)
    seen = FIRST + tl.arange(0, SECOND)[None, :] < m
    out += ((row * n + begin) * heads + head) * DIM
    for start in range(0, left, ROWS):
        s_early, s_late = tl.dot(query, k_early), tl.where(seen, tl.dot(query, k_late), -float("inf"))
        ahead = start + ROWS + place
        query = tl.load(q + ahead * q_place + column, mask=ahead < left, other=0.0)
        top = scale * tl.maximum(tl.max(s_early, axis=1), tl.max(s_late, axis=1))[:, None]
        p_early, p_late = tl.exp2(s_early * scale - top), tl.exp2(s_late * scale - top)
        total = tl.sum(p_early, axis=1) + tl.sum(p_late, axis=1)
        value = tl.dot(p_early.to(v.dtype.element_ty), v_early)
        value = tl.dot(p_late.to(v.dtype.element_ty), v_late, value) * (1.0 / total)[:, None]
        at = out + (start + place) * (heads * DIM) + column
        tl.store(at, value.to(out.dtype.element_ty), mask=place < left - start)
