"""The arithmetic of a benchmark: what was measured to what is told. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Load:
    """What one part of a model does in one run.

    Args:
        flop: operations, two for a multiplication with its sum, of the networks as they are written.
        calls: how often it is asked; each call reads its weights once at the least.
    """

    flop: int
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Rates:
    """The best that this machine gave in the same run.

    Args:
        flop_per_s: of a large matrix product, by the name of the dtype.
        bytes_per_s: of a large copy, read and written bytes together.
    """

    flop_per_s: Mapping[str, float]
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a contender is once it is loaded.

    Args:
        precision: part of the model -> dtype of its weights.
        weights_bytes: part of the model -> its weights in memory.
    """

    precision: dict[str, str]
    weights_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender, run after run.

    Args:
        contender: whose path in which dtype.
        facts: None where it could not be run.
        seconds: of each run, the warm-up left out.
        errors: relative distance to float32 on the same input, of the runs that were compared.
        peak_bytes: most memory in use while it ran, beyond what its imports take.
        failure: why it could not be run.
    """

    contender: str
    facts: Facts | None = None
    seconds: Sequence[float] = ()
    errors: Sequence[float] = ()
    peak_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What is told of a contender.

    Args:
        median_s, p90_s: of a run.
        effective_flop_per_s: the written work by the median: what an exact rewrite saves counts as speed.
        floor_s: what the machine's rates allow for the written work in these dtypes.
        to_floor: median over floor, 1 at the best.
        speedup: the peer's median over this one.
        error, worst_error: relative distance to float32, median and largest; None where nothing was compared.
    """

    contender: str
    precision: str
    runs: int
    median_s: float
    p90_s: float
    effective_flop_per_s: float
    floor_s: float
    to_floor: float
    speedup: float | None
    peak_bytes: int
    weights_bytes: int
    error: float | None
    worst_error: float | None


def p90(values: Sequence[float]) -> float:
    """The value that nine in ten do not exceed, interpolated between neighbours."""
    return float(np.percentile(np.asarray(values), 90))


def relative_error(y: NDArray[Any], reference: NDArray[Any]) -> float:
    """||y - reference|| / ||reference||, in double precision."""
    if y.shape != reference.shape:
        raise ValueError(f"{y.shape} cannot be compared with {reference.shape}")
    wanted = reference.astype(np.float64)
    return float(np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def floor_seconds(work: Mapping[str, Load], facts: Facts, rates: Rates) -> float:
    """The least time for the work: part by part the longer of the arithmetic and the reading of the weights."""
    total = 0.0
    for part, load in work.items():
        arithmetic = load.flop / rates.flop_per_s[facts.precision[part]] if load.flop else 0.0
        total += max(arithmetic, load.calls * facts.weights_bytes[part] / rates.bytes_per_s)
    return total


def to_row(measured: Measured, work: Mapping[str, Load], rates: Rates, peer: Measured | None) -> Row:
    """Everything that is told of a contender that was run."""
    facts = measured.facts
    if facts is None:
        raise ValueError(f"{measured.contender} was not run")
    median = float(np.median(measured.seconds))
    floor = floor_seconds(work, facts, rates)
    precision = facts.precision
    kinds = sorted(set(precision.values()))
    said = kinds[0] if len(kinds) == 1 else ", ".join(f"{part} {dtype}" for part, dtype in precision.items())
    return Row(
        contender=measured.contender,
        precision=said,
        runs=len(measured.seconds),
        median_s=median,
        p90_s=p90(measured.seconds),
        effective_flop_per_s=sum(load.flop for load in work.values()) / median,
        floor_s=floor,
        to_floor=median / floor,
        speedup=float(np.median(peer.seconds)) / median if peer is not None and peer.seconds else None,
        peak_bytes=measured.peak_bytes,
        weights_bytes=sum(facts.weights_bytes.values()),
        error=float(np.median(measured.errors)) if measured.errors else None,
        worst_error=max(measured.errors) if measured.errors else None,
    )


_HEADER = (
    "path",
    "precision",
    "median",
    "p90",
    "TFLOP/s",
    "time / floor",
    "times diffusers",
    "peak memory",
    "weights",
    "error",
    "worst",
)


def to_markdown(rows: Sequence[Row], failures: Sequence[Measured] = (), *, pictures: int = 0) -> str:
    """The table; what could not be run stands below it, with the reason.

    Args:
        rows: a line each.
        failures: a sentence each.
        pictures: that a run draws; with any, a column tells how many there are in a second.
    """
    header = (*_HEADER, "pictures/s") if pictures else _HEADER
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = (
            row.contender,
            row.precision,
            seconds(row.median_s),
            seconds(row.p90_s),
            f"{row.effective_flop_per_s / 1e12:.3g}" if row.effective_flop_per_s else "",
            f"{row.to_floor:.2f}",
            "" if row.speedup is None else f"{row.speedup:.2f}",
            gigabytes(row.peak_bytes),
            gigabytes(row.weights_bytes),
            "" if row.error is None else f"{row.error:.1e}",
            "" if row.worst_error is None else f"{row.worst_error:.1e}",
        )
        rate = (f"{pictures / row.median_s:.3g}",) if pictures else ()
        lines.append("| " + " | ".join((*cells, *rate)) + " |")
    lines += [f"\n{measured.contender} was not measured: {measured.failure}" for measured in failures]
    return "\n".join(lines)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same, as values."""
    return [asdict(row) for row in rows]


def seconds(value: float) -> str:
    """`1.23 s` or `45.6 ms`."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def gigabytes(count: int) -> str:
    """`1.23 GB`, decimal."""
    return f"{count / 1e9:.3g} GB"
