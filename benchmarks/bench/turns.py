"""Contenders in processes of their own, run in turn on the same inputs."""

import importlib
import multiprocessing
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from bench.figures import Facts, Load, Measured, Rates, Row, relative_error, to_row

if TYPE_CHECKING:
    from bench.machine import Clock

TESTS = Path(__file__).parents[2] / "tests"

THEIR_MODULES = ("support_chain", "support_diffusers")
"""They know the names that diffusers and transformers have for our weights, and lie beside the tests."""

_REST_S = 0.05
"""Between two contenders: the threads of the last one spin for a while before they sleep."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A path through the work.

    Args:
        name: as the subject knows it: ours, diffusers, diffusers compiled, ...
        dtype: of the network.
    """

    name: str
    dtype: str

    @property
    def ours(self) -> bool:
        """Whether it is a path of this program."""
        return self.name.startswith("ours")

    @property
    def imports(self) -> tuple[str, ...]:
        """What it needs in memory before its own begins to count."""
        return THEIR_MODULES if self.name.startswith("diffusers") else ()


Run = Callable[[int], NDArray[Any]]
"""seed -> result; it times the part that counts with the clock it was given."""


class Subject(Protocol):
    """What is measured."""

    device: str

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        """Load a contender, in a process of its own."""

    def work(self) -> Mapping[str, Load]:
        """What one run takes, part by part."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found.

    Args:
        rows: of the contenders that ran, in their order.
        failures: those that could not.
        rates: of the machine, the best of all rounds.
        machine: in words.
        seed: of the first input.
    """

    rows: Sequence[Row]
    failures: Sequence[Measured]
    rates: Rates
    machine: str
    seed: int


class CannotRunError(Exception):
    """A contender cannot be run; the message says why."""


class Worker:
    """One process that is asked for one run at a time, and is idle between.

    Args:
        device: cpu or cuda.
        prepare: takes the clock; gives what `ready` returns, and the function of a seed that `run` calls.
        imports: modules that are there before memory is counted.
        exact: no reduced precision inside float32 either.
    """

    def __init__(
        self,
        device: str,
        prepare: Callable[["Clock"], tuple[Any, Any]],
        *,
        imports: Sequence[str] = (),
        exact: bool = False,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, device, prepare, imports, exact))
        self._process.start()
        there.close()

    def ready(self) -> Any:
        """Wait until it has loaded."""
        return self._answer()

    def run(self, seed: int) -> tuple[float, Any]:
        """Seconds and result."""
        self._here.send(seed)
        seconds, result = self._answer()
        return seconds, result

    def finish(self) -> int:
        """The most memory that its runs took; it may be closed then."""
        self._here.send(None)
        peak: int = self._answer()
        return peak

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _answer(self) -> Any:
        try:
            kind, value = self._here.recv()
        except EOFError:
            self._process.join()
            raise CannotRunError(f"its process ended with code {self._process.exitcode}") from None
        if kind == "failed":
            raise CannotRunError(value)
        return value


def _serve(
    connection: Connection,
    device: str,
    prepare: Callable[["Clock"], tuple[Any, Any]],
    imports: Sequence[str],
    exact: bool,
) -> None:
    """The life of a worker's process."""
    try:
        sys.path.append(str(TESTS))
        import torch

        from bench.machine import Clock, Memory

        for name in imports:
            importlib.import_module(name)
        if exact:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        clock, memory = Clock(torch.device(device)), Memory(torch.device(device))
        told, run = prepare(clock)
        memory.restart()
        connection.send(("ok", told))
        with torch.inference_mode():
            while (seed := connection.recv()) is not None:
                result = run(seed)
                connection.send(("ok", (clock.seconds, result)))
        connection.send(("ok", clock.child_bytes or memory.peak_bytes()))
    except EOFError:  # the one who asks has gone
        pass
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())[:300]
        connection.send(("failed", f"{type(error).__name__}: {words} ({last.name}, line {last.lineno})"))


@dataclass(slots=True)
class _Book:
    """What the runs of one contender gave."""

    facts: Facts | None = None
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""


def measure(
    subject: Subject,
    contenders: Sequence[Contender],
    *,
    runs: int,
    warmup: int,
    peer: str = "diffusers",
    reference: Contender | None = None,
    compared: int | None = None,
    alone: bool = False,
    seed: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Run everything in turn, every round on another input, which all share.

    Args:
        subject: what is measured.
        contenders: in the order of the table.
        runs: that count.
        warmup: runs before, that do not.
        peer: the contender whose time the others' are divided into, dtype by dtype.
        reference: what the results are compared with; it runs first, and on a CPU is gone when the others are loaded.
        compared: how many runs are compared; None for all that count.
        alone: one contender in memory at a time.
        seed: of the first input; None draws one.
        say: takes a line of progress.
    """
    first = secrets.randbelow(2**31) if seed is None else seed
    seeds = list(range(first, first + warmup + runs))
    counted = seeds[warmup:]
    dtypes = tuple(dict.fromkeys(["float32", *(contender.dtype for contender in contenders)]))
    books = {contender: _Book() for contender in contenders}
    groups = [[contender] for contender in contenders] if alone else [list(contenders)]
    exact: dict[int, NDArray[Any]] = {}
    rates = []
    with ExitStack() as stack:
        # A GPU is lent by the minute, and has the memory: the others load while the reference runs.
        early = _started(subject, groups[0], stack) if subject.device != "cpu" and not alone else {}
        if reference is not None and compared != 0:
            say(f"{reference.name} in {reference.dtype}, to compare with")
            exact = _reference(subject, reference, counted[:compared])
        meter = Worker(subject.device, partial(_prepare_meter, subject.device, dtypes))
        stack.callback(meter.close)
        machine = meter.ready()
        for group in groups:
            say(", ".join(f"{contender.name} in {contender.dtype}" for contender in group))
            with ExitStack() as own:
                workers = early or _started(subject, group, own)
                played = {contender: books[contender] for contender in group}
                rates += _play(workers, played, seeds, counted, exact, meter)
    measured = {
        contender: Measured(contender.name, book.facts, book.seconds, book.errors, book.peak_bytes, book.failure)
        for contender, book in books.items()
    }
    peers = {contender.dtype: m for contender, m in measured.items() if contender.name == peer}
    best = Rates(
        {dtype: max(rate.flop_per_s[dtype] for rate in rates) for dtype in dtypes},
        max(rate.bytes_per_s for rate in rates),
    )
    rows = [
        to_row(m, subject.work(), best, peers.get(contender.dtype))
        for contender, m in measured.items()
        if not m.failure
    ]
    return Result(rows, [m for m in measured.values() if m.failure], best, machine, first)


def _started(subject: Subject, contenders: Sequence[Contender], stack: ExitStack) -> dict[Contender, Worker]:
    """A process each, which loads from now on, and is closed with the stack."""
    workers = {}
    for contender in contenders:
        workers[contender] = Worker(subject.device, partial(subject.prepare, contender), imports=contender.imports)
        stack.callback(workers[contender].close)
    return workers


def _reference(subject: Subject, contender: Contender, seeds: Sequence[int]) -> dict[int, NDArray[Any]]:
    """What the others' results are compared with."""
    prepare = partial(subject.prepare, contender)
    worker = Worker(subject.device, prepare, imports=contender.imports, exact=True)
    try:
        worker.ready()
        return {seed: worker.run(seed)[1] for seed in seeds}
    except CannotRunError as error:
        raise SystemExit(f"the reference cannot be run: {error}") from error
    finally:
        worker.close()


def _play(
    workers: dict[Contender, Worker],
    books: Mapping[Contender, _Book],
    seeds: Sequence[int],
    counted: Sequence[int],
    exact: Mapping[int, NDArray[Any]],
    meter: Worker,
) -> list[Rates]:
    """Run the contenders round by round, once all have loaded; who fails is left out from there on."""
    rates = []
    for contender in list(workers):
        try:
            books[contender].facts = workers[contender].ready()
        except CannotRunError as error:
            books[contender].failure = str(error)
            workers.pop(contender).close()
    for turn, seed in enumerate(seeds):
        names = list(workers)
        for contender in names[turn % len(names) :] + names[: turn % len(names)] if names else []:
            book = books[contender]
            time.sleep(_REST_S)
            try:
                seconds, result = workers[contender].run(seed)
            except CannotRunError as error:
                book.failure = str(error)
                workers.pop(contender).close()
                continue
            if seed in counted:
                book.seconds.append(seconds)
            if seed in exact:
                book.errors.append(relative_error(result, exact[seed]))
        rates.append(meter.run(seed)[1])
    for contender, worker in workers.items():
        books[contender].peak_bytes = worker.finish()
    return rates


def _prepare_meter(device: str, dtypes: tuple[str, ...], clock: "Clock") -> tuple[str, Callable[[int], Rates]]:
    from bench.machine import describe, measure_rates

    return describe(clock.device), partial(measure_rates, clock.device, dtypes)
