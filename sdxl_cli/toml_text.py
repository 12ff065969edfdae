"""Plain values as TOML, for configuration that can be saved and read again."""

import json
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """Numbers, texts, booleans, sequences and nested mappings as a TOML document; None is left out.

    Args:
        values: finite numbers only; keys are bare words.
    """
    return "\n".join(_table(values, ())) + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    tables = {key for key, value in values.items() if isinstance(value, Mapping) and value}
    lines = [f"{key} = {_value(v)}" for key, v in values.items() if v is not None and key not in tables]
    if path and lines:
        lines.insert(0, f"[{'.'.join(path)}]")
    for key in values:
        if key in tables:
            inner = _table(values[key], (*path, key))
            lines += ["", *inner] if lines and inner else inner
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    return repr(value)
