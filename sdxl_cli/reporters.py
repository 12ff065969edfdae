"""Progress on standard error: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Self

from sdxl_cli.console import Console, has_bars, plain_warnings, shorten

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import ProgressColumn, Task, TaskID
    from rich.text import Text

_FIGURES = 44  # columns for percentage, amount, rate and time


class View:
    """What the person at the terminal sees of a run; shows nothing itself. Also a `Reporter` for the core."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, task: str, total: float | None, unit: str = "") -> None:
        """Begin a task of the core: loading, downloading, hashing."""

    def advance(self, amount: float) -> None:
        """Add finished work to it."""

    def finish(self) -> None:
        """End it."""

    def note(self, text: str) -> None:
        """Say that something was done otherwise than expected."""

    def begin_run(self, pictures: int, calls: int | None) -> None:
        """Announce how many pictures and model calls there will be; None: nobody knows."""

    def begin_batch(self, title: str, calls: int | None) -> None:
        """Begin to sample one batch."""

    def step(self, calls: int) -> None:
        """Count model calls of the batch."""

    def decoding(self) -> None:
        """The latents of the batch are done; pictures are being made of them."""

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Give the terminal to other output for a moment."""
        yield


@contextmanager
def open_view(console: Console) -> Iterator[View]:
    """Bars if standard error is a terminal that can draw them, else lines, or nothing when quiet."""
    view = View() if console.quiet else _Bars(console) if has_bars() else _Lines(console)

    def warn(text: str) -> None:
        with view.hidden():
            console.warn(text)

    with view, plain_warnings(warn):
        yield view


class _Lines(View):
    """One plain line for each file that was read."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task, self._began, self._done, self._unit = "", 0.0, 0.0, ""

    def start(self, task: str, total: float | None, unit: str = "") -> None:
        self._task, self._began, self._done, self._unit = task, time.monotonic(), 0.0, unit

    def advance(self, amount: float) -> None:
        self._done += amount

    def finish(self) -> None:
        if self._unit == "B":
            self._console.note(f"{self._task}: {size_text(self._done)} in {time.monotonic() - self._began:.1f} s")

    def note(self, text: str) -> None:
        self._console.note(text)


class _Bars(View):
    """Live bars below the output; they vanish when the run ends, the lines stay."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        columns = get_terminal_size().columns
        self._label_width = columns // 3
        # A line never fills the terminal: a typed ^C would wrap, and erasing the bars would miss a line.
        bar_width = max(8, min(40, columns - self._label_width - _FIGURES))
        self._terminal = RichConsole(stderr=True, highlight=False, emoji=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=bar_width),
            *_columns(),
            console=self._terminal,
        )
        self._live = self._new_live()
        self._task: TaskID | None = None
        self._batch: TaskID | None = None
        self._whole: TaskID | None = None
        self._title = ""

    def _new_live(self) -> "Live":
        """What draws the bars again and again; one that was stopped and started again would erase a line too many."""
        from rich.live import Live

        return Live(
            get_renderable=self._progress.get_renderable,
            console=self._terminal,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, task: str, total: float | None, unit: str = "") -> None:
        self._task = self._progress.add_task(self._label(task), total=total, unit=unit)

    def advance(self, amount: float) -> None:
        if self._task is not None:
            self._progress.advance(self._task, amount)

    def finish(self) -> None:
        if self._task is not None:
            self._live.refresh()
            self._progress.remove_task(self._task)
            self._task = None

    def note(self, text: str) -> None:
        with self.hidden():
            self._console.note(text)

    def begin_run(self, pictures: int, calls: int | None) -> None:
        if pictures > 1 and calls is not None:
            self._whole = self._progress.add_task(self._label(f"all {pictures} pictures"), total=calls, unit="calls")

    def begin_batch(self, title: str, calls: int | None) -> None:
        self._title = title
        if self._batch is not None:
            self._progress.remove_task(self._batch)
        self._batch = self._progress.add_task(self._label(title), total=calls, unit="calls")

    def step(self, calls: int) -> None:
        for task in (self._batch, self._whole):
            if task is not None:
                self._progress.advance(task, calls)

    def decoding(self) -> None:
        if self._batch is not None:
            # Where nobody knew how many calls it would take, those that were made are all of them.
            calls = next(task.completed for task in self._progress.tasks if task.id == self._batch)
            self._progress.update(self._batch, total=calls, description=self._label(f"decoding {self._title}"))
            self._live.refresh()

    def _label(self, text: str) -> str:
        return shorten(text, self._label_width)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        self._live.stop()
        try:
            yield
        finally:
            self._live = self._new_live()
            self._live.start()


def _columns() -> "list[ProgressColumn]":
    """How much, how fast and how long still; made here so that importing this module leaves rich alone."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Share(ProgressColumn):
        def render(self, task: "Task") -> "Text":
            return Text("" if task.total is None else f"{task.percentage:.0f} %", justify="right")

    class Amount(ProgressColumn):
        def render(self, task: "Task") -> "Text":
            return Text(amount_text(task.completed, task.total, task.fields.get("unit", "")), justify="right")

    class Rate(ProgressColumn):
        def render(self, task: "Task") -> "Text":
            speed = task.finished_speed or task.speed
            return Text(rate_text(speed, task.fields.get("unit", "")), justify="right", style="cyan")

    class Left(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: "Task") -> "Text":
            return Text(time_text(task.time_remaining), style="dim")

    return [Share(), Amount(), Rate(), Left()]


def amount_text(done: float, total: float | None, unit: str) -> str:
    """`12/30 calls`, or for bytes `1.2/6.9 GB`; nothing for work that is not counted."""
    if not unit:
        return ""
    if unit == "B":
        return size_text(done) if total is None else f"{size_text(done, total)}/{size_text(total)}"
    return f"{done:.0f}{'' if total is None else f'/{total:.0f}'} {unit}"


def size_text(count: float, like: float | None = None) -> str:
    """Bytes in decimal units: `6.94 GB`; with `like` the bare number in the unit that `like` would get."""
    measure = count if like is None else like
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if measure >= step:
            return f"{count / step:.2f}" if like is not None else f"{count / step:.2f} {unit}"
    return f"{count:.0f}" if like is not None else f"{count:.0f} B"


def rate_text(speed: float | None, unit: str) -> str:
    """`3.4 calls/s`, below one `1.9 s/call`; nothing while it is unknown."""
    if not speed or not unit:
        return ""
    if unit == "B":
        return f"{size_text(speed)}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit.removesuffix('s')}"


def time_text(seconds: float | None) -> str:
    """`0:07 left`, with hours where there are some; nothing while it is unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
