"""Prompts from the command line, a file or standard input."""

import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path

from sdxl_core.errors import UsageError

STDIN = "-"


def gather_prompts(arguments: Sequence[str], file: Path | None) -> list[str]:
    """All prompts in the order they were given; standard input is touched only where `-` stands.

    Raises:
        UsageError: there is none, a file cannot be read or is not UTF-8.
    """
    if [*arguments, str(file)].count(STDIN) > 1:
        raise UsageError("standard input can be read only once", hint=f"give {STDIN!r} once")
    prompts = []
    for argument in arguments:
        prompts += _lines(sys.stdin.buffer.read(), "standard input") if argument == STDIN else [argument]
    if file is not None:
        prompts += _lines(sys.stdin.buffer.read(), "standard input") if str(file) == STDIN else _read(file)
    if not prompts:
        raise UsageError("no prompt was given", hint='say what to draw: sdxl gen "a cat"')
    return prompts


def _read(file: Path) -> list[str]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the prompts in {file}: {error.strerror}") from None
    return _lines(data, str(file))


def _lines(data: bytes, name: str) -> list[str]:
    """One prompt a line; blank lines and lines that start with # are left out."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "latin1"
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at line {line}, byte {column}",
            hint=f"convert it, for example with: iconv -f {guess} -t utf-8",
        ) from None
    # Only \n, \r\n and \r end a line here: str.splitlines would also cut at \x0b, \x85 and others inside a prompt.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError(f"there is no prompt in {name}")
    return prompts
