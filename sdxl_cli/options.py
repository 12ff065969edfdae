"""Flags that several commands share, and the texts that flags are written in."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import typer

from sdxl_core.errors import UsageError
from sdxl_core.types import Option
from sdxl_core.unknown import suggestion, unknown

Size = tuple[int, int]

_SIZE = re.compile(r"0*([1-9]\d{0,5})[xX×]0*([1-9]\d{0,5})", re.ASCII)
_PAIR = re.compile(r"(\d{1,6}),(\d{1,6})")
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_INTERVAL = re.compile(rf"(?:([a-z]+):)?{_NUMBER}\.\.{_NUMBER}", re.ASCII)
_ASPECT = re.compile(r"(\d{1,6}(?:\.\d{1,6})?):(\d{1,6}(?:\.\d{1,6})?)")
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_WORD = re.compile(r"[a-z][\w+.-]*", re.ASCII | re.IGNORECASE)
_TRUTHS = {"true": True, "false": False}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?", re.ASCII)
DTYPES = ("auto", "fp32", "fp16", "bf16")
PASSES = (
    *("fused_qkv", "kept_text", "kept_labels", "blank_text", "safe_half", "phase_upsampling", "fused_first_stage"),
    *("channels_last", "fused_norms", "winograd", "packed_weights", "fused_transformer", "fp8", "cuda_graph"),
)
ATTENTIONS = (
    *("auto", "sdpa", "words_first", "cudnn_first", "flash_first", "head_by_head"),
    *("cudnn", "flash", "efficient", "xformers", "math"),
)
_SHORT_DTYPES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def flag(*names: str, help: str, panel: str | None = None) -> Any:
    """A flag without a value; the type that typer would show beside it tells nobody anything."""
    return typer.Option(*names, help=help, metavar="", rich_help_panel=panel)


Json = Annotated[bool, flag("--json", help="Print JSON.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="Errors only on standard error.")]


def parse_size(text: str | None, name: str) -> Size | None:
    """`832x1216` (width x height) as (height, width).

    Raises:
        UsageError: it is written otherwise.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name} {text!r} is no size", hint="write WIDTHxHEIGHT, such as 1024x1024")
    return int(match[2]), int(match[1])


def parse_crop(text: str | None) -> Size | None:
    """`TOP,LEFT` in pixels.

    Raises:
        UsageError: it is written otherwise.
    """
    if text is None:
        return None
    match = _PAIR.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(f"--crop {text!r} is no corner", hint="write TOP,LEFT in pixels, such as 0,128")
    return int(match[1]), int(match[2])


def parse_aspect(text: str | None) -> float | None:
    """`16:9` as width / height.

    Raises:
        UsageError: it is written otherwise.
    """
    if text is None:
        return None
    match = _ASPECT.fullmatch(text.replace(" ", ""))
    if match is None or float(match[1]) == 0 or float(match[2]) == 0:
        raise UsageError(f"--aspect {text!r} is no shape", hint="write WIDTH:HEIGHT, such as 16:9")
    return float(match[1]) / float(match[2])


def parse_choice(text: str | None, name: str) -> tuple[str | None, dict[str, Option]]:
    """`NAME` or `NAME:key=value,key=value`, as samplers and schedules take their options.

    A value is a number (whole without a point), true, false or a word.

    Raises:
        UsageError: an option is not written as key=value, or is written twice.
    """
    if text is None:
        return None, {}
    chosen, colon, rest = text.partition(":")
    options: dict[str, Option] = {}
    for pair in rest.split(",") if colon else []:
        key, _, written = pair.partition("=")
        value = _parse_value(written.strip())
        if not key.strip() or value is None:
            raise UsageError(
                f"{name} {text!r}: {pair!r} is no option",
                hint=f"write {chosen}:key=value,key=value, with finite numbers",
            )
        if key.strip() in options:
            raise UsageError(f"{name} {text!r} sets {key.strip()} twice")
        options[key.strip()] = value
    return chosen.strip(), options


def _parse_value(text: str) -> Option | None:
    if text in _TRUTHS:
        return _TRUTHS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text if _WORD.fullmatch(text) else None
    return number if math.isfinite(number) else None


def parse_guiders(texts: Sequence[str]) -> dict[str, Any]:
    """What `--guider NAME` and `--guider NAME:key=value,...` lay over a preset, as dotted keys.

    Stages are joined by `+`: `pag:stages=middle_block+input_blocks.8`.

    Raises:
        UsageError: a name that is no way of guidance, or an option that is not written as key=value.
    """
    from sdxl_core.guider_config import GUIDANCE_METHODS

    found: dict[str, Any] = {}
    for text in texts:
        name, options = parse_choice(text, "--guider")
        if name not in GUIDANCE_METHODS:
            raise unknown("guider", str(name), GUIDANCE_METHODS)
        found[f"recipe.guider.{name}"] = {
            key: str(value).split("+") if key == "stages" else value for key, value in options.items()
        }
    return found


def parse_interval(text: str | None) -> dict[str, Any] | None:
    """`LOW..HIGH` in sigma, or with a unit before it, `step:3..20` and `percent:10..80`.

    Raises:
        UsageError: it is written otherwise, or the unit is unknown.
    """
    if text is None:
        return None
    from sdxl_core.guider_config import IntervalConfig

    match = _INTERVAL.fullmatch(text.replace(" ", ""))
    units = get_args(IntervalConfig.model_fields["unit"].annotation)
    unit = (match[1] or "sigma") if match else ""
    if match is None or unit not in units:
        unknown = f": unknown unit {unit!r}{suggestion(unit, units)}" if match else ""
        raise UsageError(
            f"--guidance-interval {text!r} is no interval{unknown}",
            hint="write LOW..HIGH in sigma such as 0.28..5.42, or step:3..20, or percent:10..80",
        )
    return {"unit": unit, "low": float(match[2]), "high": float(match[3])}


def parse_passes(text: str) -> Literal["auto"] | tuple[str, ...]:
    """`auto`, `none`, or names joined by commas, `auto` among them for the others that can be had.

    Raises:
        UsageError: a name is unknown.
    """
    if text == "auto":
        return "auto"
    names = () if text == "none" else tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in (*PASSES, "auto"):
            raise UsageError(
                f"--passes: unknown pass {name!r}{suggestion(name, PASSES)}", hint=f"auto, none, or {', '.join(PASSES)}"
            )
    return names


def full_dtype(name: str) -> str:
    """fp16, bf16 and fp32 by their full names; anything else as it is."""
    return _SHORT_DTYPES.get(name, name)


def check_machine(device: str, dtype: str, attention: str) -> None:
    """Refuse names that mean nothing, which needs no torch; whether this machine has them is seen later.

    Raises:
        UsageError: with a suggestion where there is one.
    """
    if not _DEVICE.fullmatch(device):
        raise unknown("device", device, ("auto", "cpu", "cuda"), shown=("auto", "cpu", "cuda", "cuda:N"))
    for kind, name, known, shown in (
        ("dtype", dtype, (*DTYPES, *_SHORT_DTYPES, *_SHORT_DTYPES.values()), DTYPES),
        ("attention backend", attention, ATTENTIONS, ATTENTIONS),
    ):
        if name not in known:
            raise unknown(kind, name, known, shown=shown)
