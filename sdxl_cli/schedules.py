"""Noise levels as they are written on a command line: a schedule by name, or a list."""

import sys
from array import array
from pathlib import Path

from sdxl_cli.options import parse_choice
from sdxl_cli.prompts import STDIN
from sdxl_core.config import DiscretizationConfig
from sdxl_core.diffusion.levels import MOST_STEPS, check_sigmas
from sdxl_core.diffusion.schedules import ALIASES, check_schedule
from sdxl_core.errors import ScheduleError, UsageError
from sdxl_core.types import Option

_MOST_BYTES = 1_000_000


def parse_schedule(text: str, flag_name: str) -> tuple[str, dict[str, Option]]:
    """`NAME` or `NAME:key=value,...` as the name of a schedule and its options.

    Raises:
        UsageError: no such schedule, or an option that it cannot have; names the flag.
    """
    written, options = parse_choice(text, flag_name)
    assert written is not None
    name = ALIASES.get(written, written)
    try:
        check_schedule(name, options)
    except UsageError as error:
        raise UsageError(f"{flag_name}: {error.message}", hint=error.hint) from None
    return name, options


def described(schedule: DiscretizationConfig) -> str:
    """A schedule with its options, as `--schedule` takes them; a list of levels is too long to be said."""
    options = {key: value for key, value in schedule.options().items() if not isinstance(value, tuple)}
    pairs = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in options.items()]
    return f"{schedule.name}:{','.join(pairs)}" if pairs else schedule.name


def read_sigmas(text: str) -> tuple[float, ...]:
    """Noise levels as `--sigmas` takes them: numbers with commas or blanks between, a file of such, `-` for stdin.

    Raises:
        UsageError: the file cannot be read, or holds something else than numbers.
        ScheduleError: levels that no sampler can walk.
    """
    if text == STDIN:
        return _parse("standard input", sys.stdin.buffer.read(_MOST_BYTES + 1))
    if "," in text or _is_number(text.partition(" ")[0]):
        return _parse("--sigmas", text.encode())
    try:
        with Path(text).open("rb") as file:
            return _parse(text, file.read(_MOST_BYTES + 1))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"--sigmas {text!r} is no list of numbers, and no file to read: {reason}",
            hint="write levels with commas between, such as 14.6,7.8,3.5,0",
        ) from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _parse(where: str, data: bytes) -> tuple[float, ...]:
    """What follows a # on a line is left out."""
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    words = " ".join(line.partition("#")[0] for line in lines).replace(",", " ").split()
    if len(data) > _MOST_BYTES or len(words) > MOST_STEPS + 1:
        raise UsageError(f"{where} holds more than {MOST_STEPS + 1} noise levels")
    sigmas = []
    for number, word in enumerate(words):
        try:
            sigmas.append(float(word))
        except ValueError:
            raise UsageError(
                f"{where}: noise level {number} is {word[:40]!r}, not a number",
                hint="write levels with commas between, such as 14.6,7.8,3.5,0",
            ) from None
    try:
        check_sigmas(array("f", sigmas))  # as they will be walked: float32 has no 1e39, and 1.00000001 is 1
    except ScheduleError as error:
        raise ScheduleError(
            f"{where}: {error.message}", hint="write at least two levels, each below the last"
        ) from None
    return tuple(sigmas)
