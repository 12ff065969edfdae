"""A model file or a latent in words, from its header."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdxl_cli.console import Console, shorten
from sdxl_cli.describe_picture import record_pairs
from sdxl_cli.places import hash_cache
from sdxl_cli.reporters import open_view, size_text
from sdxl_cli.tables import print_pairs, print_table
from sdxl_core.checkpoints.detect import Detection, detect
from sdxl_core.checkpoints.hashing import file_hash
from sdxl_core.checkpoints.header import Header, read_header
from sdxl_core.checkpoints.markers import Markers, read_markers
from sdxl_core.picture_files import RECORD_KEY, parse_record

_PARTS = (
    (re.compile(r"model\.diffusion_model\."), "network"),
    (re.compile(r"first_stage_model\."), "first stage"),
    (re.compile(r"conditioner\.embedders\.(\d+)\."), "text encoder {}"),
    (re.compile(r"cond_stage_model\."), "text encoder"),
    (re.compile(r"model_ema\."), "averaged network"),
    (re.compile(r"lora_(unet|te\d?)_"), "lora {}"),
)
_MOST_PARTS = 12


@dataclass(slots=True)
class _Part:
    """Tensors that belong together."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtypes: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        sums = {"tensors": self.tensors, "parameters": self.parameters, "bytes": self.bytes}
        return {**sums, "dtypes": dict(self.dtypes)}


def describe_model(console: Console, path: Path, hashed: bool, tensors: bool, as_json: bool) -> None:
    """Print what a safetensors file is, part by part.

    Raises:
        CheckpointError: it is no sound safetensors file.
    """
    header = read_header(path)
    found, markers = detect(header), read_markers(header)
    sha256 = None
    if hashed:
        with open_view(console) as view:
            sha256 = file_hash(path, cache=hash_cache(), reporter=view)
    latent = _latent_record(header)
    parts = _parts(header)
    if as_json:
        console.json(_document(header, found, markers, latent, parts, sha256, tensors))
        return
    console_pairs = [("file", f"{path} ({size_text(header.file_bytes)})")]
    if latent is None:
        console_pairs += [("kind", found.title), ("because", found.reason), *_network(found), *_prediction(markers)]
    else:
        console_pairs += [("kind", "a latent of this program"), *record_pairs(latent)]
    if sha256 is not None:
        console_pairs.append(("sha256", sha256))
    print_pairs(console, console_pairs)
    console.data("")
    _print_parts(console, parts)
    metadata = {key: value for key, value in header.metadata.items() if latent is None or key != RECORD_KEY}
    if metadata:
        console.data("")
        print_pairs(console, [(shorten(key, 40), shorten(value, 200)) for key, value in metadata.items()])
    if tensors:
        console.data("")
        rows = [(name, info.dtype, str(list(info.shape))) for name, info in header.tensors.items()]
        print_table(console, [("tensor", "left"), ("dtype", "left"), ("shape", "left")], rows)


def _latent_record(header: Header) -> Mapping[str, Any] | None:
    text = header.metadata.get(RECORD_KEY)
    if text is None or "latent" not in header.tensors:
        return None
    try:
        return parse_record(text)
    except ValueError:
        return None


def _network(found: Detection) -> list[tuple[str, str]]:
    pairs = []
    if found.network is not None:
        n = found.network
        pairs.append(
            (
                "network",
                f"{n.in_channels} channels in, {n.out_channels} out, width {n.model_channels}, "
                f"cross-attention {n.context_dim}, vector {n.adm_in_channels}, depths {list(n.depths)}",
            )
        )
    return pairs


def _prediction(markers: Markers) -> list[tuple[str, str]]:
    pairs = []
    if markers.prediction is not None:
        pairs.append(("predicts", f"{markers.prediction} ({markers.reason})"))
    if markers.sigma_min is not None or markers.sigma_max is not None:
        low, high = ("?" if level is None else f"{level:g}" for level in (markers.sigma_min, markers.sigma_max))
        pairs.append(("trained range", f"sigma {low} to {high}"))
    if markers.latent_mean is not None and markers.latent_std is not None:
        statistics = zip(markers.latent_mean, markers.latent_std, strict=True)
        pairs.append(("latents", ", ".join(f"{mean:g} ± {std:g}" for mean, std in statistics)))
    return pairs


def _part_of(key: str) -> str:
    for pattern, name in _PARTS:
        match = pattern.match(key)
        if match:
            return name.format(*(int(g) + 1 if g.isdigit() else g for g in match.groups()))
    return key.partition(".")[0]


def _parts(header: Header) -> dict[str, _Part]:
    """Name of the part -> its sums, in the order of the file; a file of too many parts is one."""
    parts: dict[str, _Part] = {}
    for key, info in header.tensors.items():
        part = parts.setdefault(_part_of(key), _Part())
        part.tensors += 1
        part.parameters += info.numel
        part.bytes += info.nbytes
        part.dtypes[info.dtype] += 1
    if len(parts) <= _MOST_PARTS:
        return dict(sorted(parts.items(), key=lambda item: -item[1].bytes))
    return {"all": _total(parts)}


def _total(parts: Mapping[str, _Part]) -> _Part:
    dtypes: Counter[str] = sum((p.dtypes for p in parts.values()), Counter())
    values = parts.values()
    return _Part(
        sum(p.tensors for p in values), sum(p.parameters for p in values), sum(p.bytes for p in values), dtypes
    )


def _print_parts(console: Console, parts: Mapping[str, _Part]) -> None:
    rows = [(name, part) for name, part in parts.items()]
    if len(rows) > 1:
        rows.append(("total", _total(parts)))
    print_table(
        console,
        [("part", "left"), ("tensors", "right"), ("parameters", "right"), ("size", "right"), ("dtypes", "left")],
        [
            (name, str(part.tensors), _count_text(part.parameters), size_text(part.bytes), _dtypes_text(part))
            for name, part in rows
        ],
    )


def _count_text(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else str(count)


def _dtypes_text(part: _Part) -> str:
    if len(part.dtypes) == 1:
        return next(iter(part.dtypes))
    return ", ".join(f"{count} {name}" for name, count in part.dtypes.most_common())


def _document(
    header: Header,
    found: Detection,
    markers: Markers,
    latent: Mapping[str, Any] | None,
    parts: Mapping[str, _Part],
    sha256: str | None,
    tensors: bool,
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": str(header.path),
        "bytes": header.file_bytes,
        "kind": found.kind if latent is None else "latent",
        "title": found.title if latent is None else "a latent of this program",
        "reason": found.reason if latent is None else f"has a tensor named latent and metadata named {RECORD_KEY}",
        "network": None if found.network is None else asdict(found.network),
        "prediction": markers.prediction,
        "markers": asdict(markers),
        "parts": {name: part.facts() for name, part in parts.items()},
        "metadata": dict(header.metadata),
    }
    if latent is not None:
        document["record"] = latent
    if sha256 is not None:
        document["sha256"] = sha256
    if tensors:
        document["tensors"] = {k: {"dtype": i.dtype, "shape": list(i.shape)} for k, i in header.tensors.items()}
    return document
