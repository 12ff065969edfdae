"""What a picture records about itself, in words."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdxl_cli.console import Console, shorten
from sdxl_cli.tables import print_pairs, with_options
from sdxl_core.errors import UsageError
from sdxl_core.picture_files import PARAMETERS_KEY, PictureFile, parse_parameters, read_record

Pairs = list[tuple[str, str]]


def describe_picture(console: Console, path: Path, hashed: bool, raw: bool, as_json: bool) -> None:
    """Print what a picture says about how it was made.

    Raises:
        PictureError: it is damaged.
        UsageError: `raw` was asked for, and there is no parameters text.
    """
    picture = read_record(path)
    if raw:
        if picture.parameters is None:
            raise UsageError(f"{path} has no parameters text")
        console.data(picture.parameters)
        return
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if hashed else None
    if as_json:
        console.json(
            {
                "path": str(path),
                **({} if sha256 is None else {"sha256": sha256}),
                "kind": "picture",
                "format": picture.format,
                "width": picture.width,
                "height": picture.height,
                "machine_made": picture.machine_made,
                "record": picture.record,
                "texts": picture.texts,
                "problems": picture.problems,
            }
        )
        return
    pairs = [("file", str(path)), ("kind", f"a picture ({picture.format}, {picture.width}x{picture.height})")]
    if sha256 is not None:
        pairs.append(("sha256", sha256))
    pairs += record_pairs(picture.record) if picture.record is not None else _parameter_pairs(picture)
    if picture.machine_made:
        pairs.append(("marked as", "made by a trained model (IPTC digital source type)"))
    others = [key for key in picture.texts if key != PARAMETERS_KEY]
    pairs += [(shorten(key, 30), shorten(picture.texts[key], 200)) for key in others]
    pairs += [("problem", problem) for problem in picture.problems]
    print_pairs(console, pairs)


def _parameter_pairs(picture: PictureFile) -> Pairs:
    if picture.parameters is None:
        return [("record", "none")]
    prompt, negative, pairs = parse_parameters(picture.parameters)
    shown = [("prompt", prompt), ("negative", negative)]
    return [pair for pair in shown if pair[1]] + [(shorten(k, 30), shorten(v, 200)) for k, v in pairs.items()]


def record_pairs(record: Mapping[str, Any]) -> Pairs:
    """The chief facts of a record; whatever is missing or of another type is passed over."""
    plan = _table(record.get("plan"))
    sampler, levels, guider = (_table(plan.get(key)) for key in ("sampler", "discretization", "guider"))
    facts: list[tuple[str, object]] = [
        ("prompt", plan.get("prompt")),
        ("prompt 2", plan.get("prompt_2")),
        ("negative", plan.get("negative")),
        ("negative 2", plan.get("negative_2")),
        ("seed", plan.get("seed")),
        ("size", _pair(plan.get("size"))),
        *_believed_sizes(plan),
        *_source(_table(plan.get("source"))),
        ("steps", plan.get("steps")),
        ("sampler", with_options(sampler)),
        ("schedule", with_options(levels)),
        ("guidance", with_options(guider)),
        ("model calls", record.get("model_calls")),
        ("model", plan.get("model")),
        *_refiner(_table(plan.get("refiner")), _table(record.get("switch"))),
        *(
            (f"{str(w.get('role')).replace('_', ' ')} file", f"{w.get('name')} sha256 {w.get('sha256')}")
            for w in _tables(record.get("weights"))
        ),
        ("ran on", _listed(record.get("device_name"), plan.get("device"), plan.get("dtype"), plan.get("attention"))),
        ("passes", _listed(*passes) if isinstance(passes := plan.get("passes"), list) else None),
        ("versions", ", ".join(f"{key} {value}" for key, value in _table(record.get("versions")).items())),
        ("software", record.get("software")),
    ]
    return [(name, shorten(str(value), 2000)) for name, value in facts if value not in (None, "")]


def _refiner(refiner: Mapping[str, Any], switch: Mapping[str, Any]) -> Pairs:
    """The second model, and where it took over."""
    at = f", from step {switch.get('step')} (sigma {switch.get('sigma')})" if switch else ""
    return [("refiner", f"{refiner.get('model')}, {refiner.get('mode')}{at}")] if refiner else []


def _source(source: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The files that the picture started from, and how much of the steps was walked."""
    for title, key in (("starts from", "picture"), ("mask", "mask")):
        file = _table(source.get(key))
        if file:
            yield title, f"{file.get('name')}, {_pair(file.get('size'))}, sha256 {file.get('sha256')}"
    if source:
        yield "strength", _table(source.get("how")).get("strength")


def _believed_sizes(plan: Mapping[str, Any]) -> Pairs:
    """The size conditions that were set to something else than the picture's own."""
    pairs = [
        (name.replace("_", " "), _pair(plan.get(name)))
        for name in ("original_size", "target_size")
        if plan.get(name) != plan.get("size")
    ]
    crop = plan.get("crop_coords_top_left")
    if isinstance(crop, list) and len(crop) == 2 and crop != [0, 0]:
        pairs.append(("crop", f"{crop[0]},{crop[1]}"))
    return pairs


def _pair(size: object) -> str:
    """[height, width] as people write it; nothing for anything else."""
    return f"{size[1]}x{size[0]}" if isinstance(size, list) and len(size) == 2 else ""


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _listed(*values: object) -> str:
    return ", ".join(str(value) for value in values if value)
