"""TOML files as plain tables, and plain tables as strict typed values with errors that name the key."""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tomli
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sdxl_core.errors import PresetError
from sdxl_core.unknown import suggestion

MAX_BYTES = 1_000_000

Table = dict[str, Any]
Place = tuple[str | int, ...]
"""Where a value stands: keys and list positions, from the outside in."""

M = TypeVar("M", bound=BaseModel)


def read_toml(path: Path) -> Table:
    """Read one TOML file of at most 1 MB.

    Raises:
        PresetError: the file is missing, no regular file, too large, not UTF-8 or not TOML; says the line and column.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PresetError(f"{path}: not a regular file")
        if status.st_size > MAX_BYTES:
            raise PresetError(f"{path}: {status.st_size} bytes are too many for a preset (at most {MAX_BYTES})")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PresetError(f"{path}: line {line}: not UTF-8 text", hint="save the file as UTF-8") from error
    except OSError as error:
        raise PresetError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:  # a NUL in the path
        raise PresetError(f"{str(path)!a}: {error}") from error
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise PresetError(f"{path}: line {error.lineno}, column {error.colno}: {_lower(error.msg)}") from error
    except RecursionError as error:
        raise PresetError(f"{path}: nested too deeply") from error
    except ValueError as error:
        raise PresetError(f"{path}: {_lower(str(error))}") from error


def build(cls: type[M], table: Mapping[str, Any], source: Callable[[Place], str]) -> M:
    """Make a strict typed value of a plain table; TOML's lists become tuples.

    Args:
        cls: the model class.
        table: what TOML gave.
        source: says which file (or flag) a place of the table came from, for the error.

    Raises:
        PresetError: names the source, the dotted key, what is wrong with it and, where there is one, a likely key.
    """
    frozen = _tuples(table)
    try:
        return cls.model_validate(frozen)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key is also a missing one: the key that is there says more.
        first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
        place = _place(first, frozen)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        dotted_place = f"{dotted(place)}: " if place else ""
        raise PresetError(f"{source(place)}: {dotted_place}{_complaint(cls, first, place)}{more}") from error


def dotted(place: Place) -> str:
    """`("network", "channel_mult", 1)` as `network.channel_mult[1]`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def shown(value: object) -> str:
    """A value as it may stand in an error: one short line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = ascii(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tuples(value: Any) -> Any:
    """The value with tuples for lists: strict models take no list where a tuple is declared."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


def _place(problem: ErrorDetails, table: Any) -> Place:
    """The problem's location without the tag that pydantic adds where a union chose a class."""
    location, here, place = problem["loc"], table, []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(step, str) and isinstance(here, Mapping) and step not in here and not last:
            continue
        place.append(step)
        if isinstance(step, str):
            here = here.get(step) if isinstance(here, Mapping) else None
        else:
            here = here[step] if isinstance(here, tuple) and step < len(here) else None
    return tuple(place)


def _complaint(cls: type[BaseModel], problem: ErrorDetails, place: Place) -> str:
    kind, got, context = problem["type"], shown(problem["input"]), problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted(_keys(cls, place[:-1]))
        return "unknown key" + (suggestion(str(place[-1]), known) or f" (known: {', '.join(known)})")
    if kind == "missing":
        return "missing" if isinstance(place[-1], str) else "too few entries"
    if kind in {"too_long", "too_short"}:
        return (
            f"expected {context.get('max_length', context.get('min_length'))} entries, got {context['actual_length']}"
        )
    if kind == "union_tag_not_found":
        return "missing key kind"
    if kind in {"literal_error", "union_tag_invalid"}:
        allowed = [word.strip("'") for word in _words(context.get("expected", context.get("expected_tags", "")))]
        wrong = context.get("tag", problem["input"])
        return f"expected {either(allowed)}, got {shown(wrong)}{suggestion(str(wrong), allowed)}"
    if kind == "value_error":
        return str(context["error"])
    if _EXPECTED.get(kind) == "a table" and isinstance(problem["input"], str) and "name" in _keys(cls, place):
        return f"expected a table such as {{name = {got}}}, got {got}"  # its quotes are TOML's too
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {got}"
    if kind in _LIMIT:
        sign, key = _LIMIT[kind]
        return f"must be {sign} {context[key]}, got {got}"
    return f"{_lower(problem['msg'])}, got {got}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}
_LIMIT = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def _keys(cls: type[BaseModel], place: Place) -> set[str]:
    """The keys that may stand in the table at `place`; of a union, those of all its classes."""
    classes = {cls}
    for step in place:
        if isinstance(step, str):
            annotations = [c.model_fields[step].annotation for c in classes if step in c.model_fields]
            classes = {found for annotation in annotations for found in _models(annotation)}
    return {key for c in classes for key in c.model_fields}


def _models(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    if get_origin(annotation) is Literal:
        return set()
    return {found for argument in get_args(annotation) for found in _models(argument)}


def _words(text: str) -> list[str]:
    return [word for word in text.replace(" or ", ", ").split(", ") if word]


def _lower(text: str) -> str:
    """Fit a library's sentence into ours."""
    return (text[:1].lower() + text[1:]).rstrip(".")
