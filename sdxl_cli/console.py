"""What the commands print: data on standard output, all else on standard error, and nothing that drives a terminal."""

import contextlib
import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from sdxl_core.errors import OutputError

PIPE_CLOSED = 141
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def safe(text: str) -> str:
    """`text` with everything left out that could move the cursor, recolour or reorder a terminal's line.

    Prompts, file names and metadata come from anywhere; line breaks become spaces.
    """
    spaced = " ".join(text.splitlines()) if "\n" in text or "\r" in text else text
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cs") and ord(c) not in _BIDI)


def shorten(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, an ellipsis where it was cut."""
    clean = safe(text)
    return clean if len(clean) <= width else clean[: max(width - 1, 0)].rstrip() + "…"


def counted(count: int, one: str, many: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {one if count == 1 else many}"


def has_colour(stream: TextIO) -> bool:
    """Whether to colour `stream`: a terminal, unless NO_COLOR or TERM=dumb says no; FORCE_COLOR says yes."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_bars() -> bool:
    """Whether standard error is a terminal on which a line can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _painted(word: str, colour: int) -> str:
    return f"\033[1;{colour}m{word}\033[0m" if has_colour(sys.stderr) else word


def print_error(message: str, hint: str | None = None) -> None:
    """`error: ...`, and `hint: ...` on the next line if there is one."""
    _say(f"{_painted('error:', 31)} {safe(message)}")
    if hint:
        _say(f"{_painted('hint:', 36)} {safe(hint)}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # no one is left to tell
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def plain_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Hand what code warns of, ours or a library's, to `say`: on one line, without its place in the code.

    What is meant for developers, such as deprecations, is not said. Who asks Python for warnings, by -W or
    PYTHONWARNINGS, gets all of them as Python writes them.
    """

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning | RuntimeWarning):
            say(" ".join(str(message).partition("(Triggered internally")[0].split()))

    before = warnings.showwarning
    if not sys.warnoptions:
        warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def drop_stdout() -> None:
    """Point standard output nowhere, so that what is still buffered cannot fail again at exit."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@dataclass(frozen=True, slots=True)
class Console:
    """The two streams as a command uses them.

    Args:
        quiet: leave out notes and warnings.
    """

    quiet: bool = False

    def data(self, text: str) -> None:
        """One line of the product. Ends the run quietly when the reader has gone.

        Raises:
            typer.Exit: the pipe is closed.
            OutputError: the disk behind standard output is full.
        """
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            drop_stdout()
            raise typer.Exit(PIPE_CLOSED) from None
        except OSError as error:
            drop_stdout()
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None

    def json(self, value: Mapping[str, Any] | list[Any], *, indent: int | None = None) -> None:
        """A JSON document; on one line unless `indent` is given."""
        self.data(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent))

    def note(self, text: str) -> None:
        """A line for the person at the terminal."""
        if not self.quiet:
            _say(safe(text))

    def warn(self, text: str) -> None:
        """A line about something that the person may not have meant."""
        if not self.quiet:
            _say(f"{_painted('warning:', 33)} {safe(text)}")
