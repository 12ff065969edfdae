"""What evaluate.py found, as tables for docs/micro.md and as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_COLUMNS = 8
_LABEL = 26  # pixels under each picture


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers with a fraction get one decimal."""

    def cell(value: object) -> str:
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *([cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_markdown(metrics: dict[str, Any]) -> str:
    """All tables."""
    sets = metrics["sets"]
    rows = [
        [
            name,
            s["pictures"],
            *(f"{100 * s[key]:.1f} %" if key in s else "" for key in ("thing", "background", "style")),
        ]
        for name, s in sets.items()
    ]
    parts = [
        f"{metrics['model']}, sha256 `{metrics['sha256'][:16]}`, {metrics['steps']} steps, guidance "
        f"{metrics['guidance']:g}, {metrics['dtype']}, picture i from seed i.",
        table(["set", "pictures", "thing", "background", "style"], rows),
        "Some that went wrong, with what the judge saw instead: " + _mistakes(sets),
        "Guidance scale and steps, on the first pictures of the set of trained combinations:",
        _sweep("guidance", metrics["guidance_sweep"]),
        _sweep("steps", metrics["steps_sweep"]),
        "Crop conditioning: where the drawing's centre lies when the model is told that the picture was cut from one a "
        "quarter longer, at this corner. In the data the centre moves one pixel a pixel.",
        _crop(metrics["crop"]),
        "Original size: mean squared Laplacian of the brightness when the model is told that the original was this "
        "large, and of the same drawings made at that size and enlarged, as in the data.",
        table(
            ["original size", "micro", "data", "thing"],
            [[r["size"], r["sharpness"], r["data"], f"{100 * r['thing']:.1f} %"] for r in metrics["original_size"]],
        ),
    ]
    return "\n\n".join(parts)


def _mistakes(sets: dict[str, Any], most: int = 16) -> str:
    """A few wrong pictures of the first set, spread over it."""
    wrong = next(iter(sets.values()))["wrong"]
    return "; ".join(wrong[:: -(-len(wrong) // most)] if wrong else ["none"]) + "."


def _sweep(name: str, rows: Sequence[dict[str, Any]]) -> str:
    keys = ("thing", "background", "style")
    body = [
        [f"{r['value']:g}", r["pictures"], *(f"{100 * r[k]:.1f} %" for k in keys), f"{r['seconds']:.2f}"] for r in rows
    ]
    return table([name, "pictures", *keys, "seconds a picture"], body)


def _crop(crop: dict[str, Any]) -> str:
    rows = [
        [step, *(value for axis in ("left", "top") for value in (crop[axis]["centre"][i], crop[axis]["expected"][i]))]
        for i, step in enumerate(crop["left"]["steps"])
    ]
    slopes = ["slope", crop["left"]["slope"], -1.0, crop["top"]["slope"], -1.0]
    slopes = [f"{v:.2f}" if isinstance(v, float) else v for v in slopes]
    return table(
        ["corner", "centre x at crop left", "in the data", "centre y at crop top", "in the data"], [*rows, slopes]
    )


def write_docs(path: Path, markdown: str, name: str = "figures") -> None:
    """Put text between the marks of that name in a document, replacing what was there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"{path} has no {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    path.write_text(f"{before}{begin}\n{markdown}\n{end}{after}", encoding="utf-8")


def grid(pictures: Sequence[NDArray[np.uint8]], labels: Sequence[str]) -> Image.Image:
    """Pictures in rows, each with its prompt below."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // _COLUMNS)
    pad = 6
    sheet = Image.new("RGB", (_COLUMNS * (width + pad) + pad, rows * (height + _LABEL + pad) + pad), (236, 236, 236))
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x = pad + index % _COLUMNS * (width + pad)
        y = pad + index // _COLUMNS * (height + _LABEL + pad)
        sheet.paste(Image.fromarray(picture), (x, y))
        for line, words in enumerate(_wrapped(pen, label, width)[:2]):
            pen.text((x, y + height + 1 + 12 * line), words, fill=(40, 40, 40))
    return sheet


def _wrapped(pen: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
