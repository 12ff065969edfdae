"""File names of pictures: where `--output` points, and the next free name there."""

import os
import re
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sdxl_core.errors import OutputError, UsageError
from sdxl_core.output import NameTakenError
from sdxl_core.unknown import suggestion

DEFAULT_DIRECTORY = "outputs"
DEFAULT_TEMPLATE = "{index:05d}-{seed}-{slug}"

FORMATS = {"png": (".png",), "jpg": (".jpg", ".jpeg"), "webp": (".webp",)}
OTHER_PICTURES = {".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".ppm", ".svg"}

_NUMBERS = ("index", "seed", "width", "height", "steps")
_WORDS = ("slug", "prompt", "sampler", "preset", "source", "date", "time")
TEMPLATE_KEYS = (*_NUMBERS, *_WORDS)
_NUMBER_SPEC = re.compile(r"(0?[1-9]\d?)?d?")
_WORD_SPEC = re.compile(r"(\.[1-9]\d{0,2})?s?")

# A file system allows 255 bytes; the rest is for a companion's suffix such as `.latent.safetensors`.
_NAME_BYTES = 230
_WORD_BYTES = 100
_SLUG_BYTES = 60
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}


@dataclass(frozen=True, slots=True)
class NameFields:
    """What a name template may speak of, but for the index, which is found when the name is.

    Args:
        seed: of this picture.
        prompt: as typed; `{prompt}` and `{slug}` are made from it.
        width: in pixels.
        height: in pixels.
        steps: of the sampler.
        sampler: its name.
        preset: name of the model preset.
        when: start of the run; `{date}` is 2026-01-31, `{time}` 235959.
        source: name of the picture that it starts from, without its ending.
    """

    seed: int
    prompt: str
    width: int
    height: int
    steps: int
    sampler: str
    preset: str
    when: datetime
    source: str = ""

    def values(self, index: int) -> dict[str, int | str]:
        """Every key of a template with its value, text made fit for a file name."""
        return {
            "index": index,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "slug": slug(self.prompt),
            "prompt": sanitise(self.prompt),
            "sampler": sanitise(self.sampler),
            "preset": sanitise(self.preset),
            "source": sanitise(self.source) if self.source else "words",
            "date": self.when.strftime("%Y-%m-%d"),
            "time": self.when.strftime("%H%M%S"),
        }


def _cut(text: str, limit: int) -> str:
    """`text` cut to at most `limit` bytes of UTF-8, between characters."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def slug(prompt: str) -> str:
    """The letters and digits of a prompt, lower case, joined by hyphens; at most 60 bytes, never empty."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", prompt).lower())
    joined = "-".join(words)
    cut = _cut(joined, _SLUG_BYTES)
    if len(cut) < len(joined) and "-" in cut and joined[len(cut)] != "-":
        cut = cut.rpartition("-")[0]
    return cut.strip("-") or "picture"


def sanitise(text: str) -> str:
    """`text` as a part of a file name: no separators, controls or leading dots; at most 100 bytes, never empty."""
    kept = "".join("_" if c in '/\\:*?"<>|' or unicodedata.category(c)[0] == "C" else c for c in text)
    return _cut(" ".join(kept.split()).lstrip(". "), _WORD_BYTES).rstrip(". ") or "picture"


@dataclass(frozen=True, slots=True)
class NameTemplate:
    """A checked template: literal text and `{key}` or `{key:spec}` with keys of `TEMPLATE_KEYS`, nothing else."""

    text: str

    def __post_init__(self) -> None:
        for key, spec, conversion in _fields(self.text):
            if conversion or key not in TEMPLATE_KEYS:
                near = suggestion(f"{{{key}}}", [f"{{{known}}}" for known in TEMPLATE_KEYS if known != key])
                raise UsageError(
                    f"the name template has an unknown key {{{key}{'!' + conversion if conversion else ''}}}{near}",
                    hint=f"keys: {', '.join(TEMPLATE_KEYS)}",
                )
            if not (_NUMBER_SPEC if key in _NUMBERS else _WORD_SPEC).fullmatch(spec):
                raise UsageError(
                    f"the name template cannot format {{{key}:{spec}}}",
                    hint="numbers take a width such as {index:05d}, text a length such as {prompt:.20}",
                )
        parts = Path(self.text).parts
        if not parts or Path(self.text).is_absolute() or ".." in parts or "\0" in self.text:
            raise UsageError(f"the name template {self.text!r} leaves the output directory")

    @property
    def has_fields(self) -> bool:
        """Whether different pictures get different names."""
        return any(True for _ in _fields(self.text))

    @property
    def has_index(self) -> bool:
        """Whether the name counts."""
        return any(key == "index" for key, _, _ in _fields(self.text))

    def format(self, values: dict[str, int | str]) -> Path:
        """The relative path for `values`.

        Raises:
            UsageError: a part of it is longer than a file system allows.
        """
        # Formatter.format would follow attributes and indices; the keys were checked to have none.
        parts = [_guard(part) for part in Path(self.text.format(**values)).parts]
        return Path(*parts)


def _fields(text: str) -> Iterator[tuple[str, str, str]]:
    try:
        for _, key, spec, conversion in string.Formatter().parse(text):
            if key is not None:
                yield key, spec or "", conversion or ""
    except ValueError as e:
        raise UsageError(f"the name template {text!r} does not parse: {e}", hint="write {{ and }} for braces") from None


def _guard(part: str) -> str:
    if len(part.encode("utf-8", "surrogateescape")) > _NAME_BYTES:
        raise UsageError(f"the name {part[:40]!r}... is longer than {_NAME_BYTES} bytes", hint="shorten the template")
    return f"_{part}" if part.partition(".")[0].upper() in _RESERVED else part


@dataclass(frozen=True, slots=True)
class Destination:
    """Where pictures go: a directory and a template of names below it; `format` is a key of `FORMATS`."""

    directory: Path
    template: NameTemplate
    suffix: str
    format: str


def resolve_destination(output: str | None, format: str | None = None) -> Destination:
    """What `--output` and `--format` mean together.

    A name with braces is a template; one that ends in a picture's suffix is one file; all else is a directory.

    Args:
        output: as typed; None stands for `./outputs`.
        format: png, jpg or webp; None: by the suffix of the name, else png.

    Raises:
        UsageError: the template does not parse, or the name and the format disagree.
    """
    if output == "":
        raise UsageError("--output is empty")
    # A template is quoted for its braces, and then no shell expands the tilde.
    text = DEFAULT_DIRECTORY if output is None else os.path.expanduser(output)
    path = Path(text)
    suffix = path.suffix.lower()
    is_directory = os.path.isdir(path)  # Path.is_dir raises for a name that is too long
    if suffix in OTHER_PICTURES and not is_directory:
        raise UsageError(f"pictures cannot be written as {suffix}", hint=f"use one of {', '.join(FORMATS)}")
    known = next((name for name, suffixes in FORMATS.items() if suffix in suffixes), None)
    is_name = "{" in text or "}" in text or known is not None
    if text.endswith(os.sep) or is_directory or not is_name:
        return Destination(path, NameTemplate(DEFAULT_TEMPLATE), FORMATS[format or "png"][0], format or "png")
    if format is not None and known not in (None, format):
        raise UsageError(f"--format {format} disagrees with the name {path.name!r}")
    directory, name = _split(text)
    if known is not None:
        name = name[: -len(suffix)]
    chosen = format or known or "png"
    return Destination(directory, NameTemplate(name), suffix if known else FORMATS[chosen][0], chosen)


def _split(text: str) -> tuple[Path, str]:
    """The fixed directory of a template, and the rest, which starts at the last separator before the first brace."""
    head = text.partition("{")[0] if "{" in text else text
    cut = head.rfind(os.sep) + 1
    return Path(text[:cut] or "."), text[cut:]


@dataclass(slots=True)
class Names:
    """Hands out file names: the next free one, or with `overwrite` the same ones for the same run.

    Args:
        destination: the directory and the template.
        overwrite: hand out names that files have already.
        companion: suffix of a file beside each picture, whose name must be free too.
    """

    destination: Destination
    overwrite: bool = False
    companion: str = ""
    _index: int = 1
    _promised: set[Path] = field(default_factory=set)
    _seen: set[Path] = field(default_factory=set)

    def check(self, fields: NameFields, pictures: int) -> None:
        """Refuse, before any work, a fixed name that cannot serve `pictures` pictures.

        Raises:
            UsageError: one fixed name for several pictures.
            NameTakenError: a fixed name that is taken.
        """
        if self.destination.template.has_fields:
            return
        path = self._path(fields, 0)
        if pictures > 1:
            raise UsageError(
                f"{path} is one file, and there are {pictures} pictures",
                hint="give a directory, or a template such as '{index:03d}.png'",
            )
        if not self._free(path):
            raise NameTakenError(path)

    def next(self, fields: NameFields) -> Path:
        """A path that no file has and that was not handed out before."""
        counts = self.destination.template.has_index
        self._continue_after(self._path(fields, self._index).parent)
        for attempt in range(1_000_000):
            path = self._path(fields, self._index, 0 if counts else attempt)
            self._index += counts
            if path not in self._promised and self._free(path):
                self._promised.add(path)
                return path
        raise OutputError(f"no free name is left for {self.destination.template.text!r}")

    def _free(self, path: Path) -> bool:
        companion = path.with_suffix(self.companion) if self.companion else path
        return self.overwrite or not (os.path.lexists(path) or os.path.lexists(companion))

    def _path(self, fields: NameFields, index: int, attempt: int = 0) -> Path:
        stem = self.destination.template.format(fields.values(index))
        tail = f"-{attempt + 1}" if attempt else ""
        return self.destination.directory / stem.with_name(f"{stem.name}{tail}{self.destination.suffix}")

    def _continue_after(self, directory: Path) -> None:
        """Count on after the highest index in a directory that is met for the first time."""
        prefix, _, rest = Path(self.destination.template.text).name.partition("{")
        if self.overwrite or directory in self._seen or not rest.startswith("index"):
            return
        self._seen.add(directory)
        pattern = re.compile(re.escape(prefix) + r"(\d{1,12})(?!\d)")
        try:
            found = [int(match[1]) for match in map(pattern.match, os.listdir(directory)) if match]
        except OSError:
            return  # not there yet, so nothing was counted
        self._index = max([self._index, *(n + 1 for n in found)])
