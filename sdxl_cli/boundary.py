"""The one place where exceptions become text on standard error and an exit code."""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import typer

from sdxl_cli.console import PIPE_CLOSED, Console, drop_stdout, plain_warnings, print_error
from sdxl_core.errors import MemoryExhaustedError, SdxlError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SOME_FAILED, INTERNAL_BUG = 3, 101
EXIT_CODES = {
    0: "all done",
    1: "a picture cannot be read or written, or is not finite",
    2: "a flag, prompt, preset or device that cannot be honoured",
    SOME_FAILED: "some pictures failed or were left out, the others are written",
    4: "a model file is missing or was rejected",
    5: "out of memory",
    INTERNAL_BUG: "a bug in sdxl",
    128 + signal.SIGINT: "interrupted by Ctrl-C",
    PIPE_CLOSED: "the reader of standard output went away",
    128 + signal.SIGTERM: "ended by SIGTERM",
}
ALL_FAILED = "Where every one of several pictures or files failed, the code is that of the first failure."


_PLAINER = (
    (re.compile(r"Input should be a valid integer.*"), "expected a whole number"),
    (re.compile(r"Input should be a valid number.*"), "expected a number"),
    (re.compile(r"Value error, "), ""),
)


class Stopped(BaseException):
    """A signal asked the run to end; `message` says what it leaves behind."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        self.message = "interrupted" if code == 128 + signal.SIGINT else "terminated"


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: without the program's name; None for this process's own.

    Returns:
        The exit code, one of `EXIT_CODES`.
    """
    _open_closed_streams()
    args, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    previous = {number: signal.signal(number, _stop) for number in _SIGNALS if main}
    try:
        with plain_warnings(Console().warn), _no_signal_lost():
            code = _guarded(args, debug)
        return _flush() or code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Job runners may start a program with its streams closed: what it says goes nowhere then, and it works on.

    What it reads is empty.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process lives)


@contextmanager
def _no_signal_lost() -> Iterator[None]:
    """Send a signal again that came where Python drops what is raised: in a finaliser, as imports have many.

    A thread sends it, some time later: raised in here it would be dropped too.
    """
    before = sys.unraisablehook

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, Stopped):
            before(dropped)
            return
        number = dropped.exc_value.code - 128
        for each in _SIGNALS:
            signal.signal(each, _stop)
        sender = threading.Timer(0.01, os.kill, (os.getpid(), number))
        sender.daemon = True
        sender.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def finishing() -> Iterator[None]:
    """Let a few statements end before a signal takes effect: what is written is also said. A second one kills.

    Once a signal has come, the next one kills here as everywhere.
    """
    told = signal.getsignal(signal.SIGINT) is _stop_hard
    if told or threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        pending.append(number)
        for each in _SIGNALS:
            signal.signal(each, _stop_hard)

    previous = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if pending:
        _stop(pending[0], None)


def _take_debug(args: list[str]) -> tuple[list[str], bool]:
    """Accept --debug anywhere before `--`: it belongs to no command."""
    end = args.index("--") if "--" in args else len(args)
    kept = [a for a in args[:end] if a != "--debug"]
    return kept + args[end:], len(kept) < end or bool(os.environ.get("SDXL_DEBUG"))


def _guarded(args: list[str], debug: bool) -> int:
    try:
        from sdxl_cli.app import app

        result = typer.main.get_command(app).main(args=args, prog_name="sdxl", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Stopped as stop:
        print_error(stop.message)
        return stop.code
    except typer.TyperException as error:
        return _usage(error)
    except SystemExit as exit_:  # shell completion, and rich when its pipe closes
        return exit_.code if isinstance(exit_.code, int) else 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error, debug)


def _explain(error: Exception, debug: bool) -> int:
    if isinstance(error, SdxlError):
        print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    if _is_memory(error):
        print_error("out of memory", "a smaller --size or --batch-size, or another --dtype, needs less")
        return MemoryExhaustedError.exit_code
    print_error(
        f"internal error: {type(error).__name__}: {error}",
        None if debug else "this is a bug in sdxl; SDXL_DEBUG=1 shows where",
    )
    return INTERNAL_BUG


def _is_memory(error: Exception) -> bool:
    """Told by name and text: torch may not be imported here, and on the CPU it raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _usage(error: typer.TyperException) -> int:
    """The complaint of typer in our form. Its class for a missing command has printed the help already."""
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2
    possibilities = getattr(error, "possibilities", None)
    context = getattr(error, "ctx", None)
    hint = f"'{context.command_path} --help' lists what there is" if context else None
    if possibilities:
        text = text.partition(" (Possible")[0]
        hint = f"did you mean {' or '.join(possibilities)}?"
    if (guess := re.fullmatch(r"(No such command '.*')\. (Did you mean .*\?)", text, re.DOTALL)) is not None:
        text, hint = guess[1], guess[2][:1].lower() + guess[2][1:]
    for pattern, plain in _PLAINER:
        text = pattern.sub(plain, text)
    print_error(text[:1].lower() + text[1:].rstrip("."), hint)
    return error.exit_code


def _stop(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _stop_hard)
    raise Stopped(128 + number)


def _stop_hard(number: int, _: FrameType | None) -> None:
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\033[?25h\n")  # a progress bar may have hidden the cursor
    os._exit(128 + number)


def _flush() -> int:
    """Bring out what is buffered; a full disk behind standard output is an error like any other."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
        return PIPE_CLOSED
    except OSError as error:
        drop_stdout()
        print_error(f"cannot write to standard output: {error.strerror}")
        return 1
    return 0
