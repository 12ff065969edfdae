"""Measure img2img: with more strength a picture leaves what it starts from and comes to show what the prompt says.

    PYTHONPATH=. python benchmarks/img2img_strength.py --model micro.safetensors --data DATA --out DIR \\
        [--docs docs/img2img.md]

DATA is what benchmarks/micro/build_data.py wrote: every run starts from one of its pictures, of one thing, and asks
for another thing in the same style on the same background. benchmarks/micro/metric.py judges what is seen. Writes
DIR/strength.json, DIR/table.md and DIR/strip.png; with --docs also puts the table between that document's marks, and
the strip into images/ beside it.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent / "micro"))  # its scripts are no package

from captions import plain_caption
from cases import CHOICE_SEED, RealPicture, choose_cases
from metric import Pixels, References
from report import table, write_docs

from sdxl_core.batching import batches
from sdxl_core.canvas import build_canvas
from sdxl_core.engine import Engine, load_engine
from sdxl_core.from_pictures import sample_from
from sdxl_core.pipeline import decode
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import load_preset
from sdxl_core.source import build_source
from sdxl_core.source_pictures import SourcePicture, read_picture

STRENGTHS = tuple(tenth / 10 for tenth in range(1, 10))
STRIP_ROWS = 6
STRIP_FILE = "images/img2img_strength.png"  # beside the document
_GAP, _LABEL = 6, 16  # pixels


@dataclass(frozen=True)
class Turn:
    """A picture to start from, and what it shall turn into."""

    start: RealPicture
    picture: SourcePicture
    thing: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Artist:
    """A model with the recipe to run it by."""

    engine: Engine
    preset_name: str
    batch_size: int

    def draw(self, turns: Sequence[Turn], strength: float) -> tuple[list[Pixels], tuple[float, ...]]:
        """One picture a turn, and the levels that were walked."""
        plans = [self._plan(turn, strength) for turn in turns]
        waiting = iter(turns)
        pictures = []
        for group in batches(plans, self.batch_size):
            given = [next(waiting).picture for _ in group]
            canvases = [build_canvas(p.source, p.size, g, None) for p, g in zip(group, given, strict=True) if p.source]
            *_, last = sample_from(self.engine, group, canvases)
            pictures += decode(self.engine, last.x)
        return pictures, plans[0].sigmas()

    def _plan(self, turn: Turn, strength: float) -> Plan:
        preset = load_preset(self.preset_name, {"recipe.source.strength": strength})
        source = build_source(preset.model, preset.recipe.source, turn.picture.file)
        return build_plan(preset, turn.prompt, seed=turn.seed, source=source)


def choose_turns(data: Path, references: References, count: int) -> list[Turn]:
    """The pictures that the judge is judged by, each with another thing that has both styles."""
    real = choose_cases(data, references.phrases, len(references.things)).real[:count]
    rng = np.random.default_rng(CHOICE_SEED)
    turns = []
    for seed, start in enumerate(real):
        others = [thing for thing in references.things if thing != start.thing]
        thing = others[int(rng.integers(len(others)))]
        prompt = plain_caption(references.phrases[thing], start.style, start.background)
        turns.append(Turn(start, read_picture(start.path), thing, prompt, seed))
    return turns


def judge(references: References, turns: Sequence[Turn], pictures: Sequence[Pixels]) -> dict[str, float]:
    """Mean root-mean-square distance to the start (0 to 255), and shares of pictures by what is seen in them."""
    seen = [references.thing(p, t.start.style, t.start.background) for t, p in zip(turns, pictures, strict=True)]
    distances = [
        float(np.sqrt(np.mean((p.astype(np.float64) - t.picture.pixels) ** 2)))
        for t, p in zip(turns, pictures, strict=True)
    ]
    return {
        "distance": float(np.mean(distances)),
        "start": float(np.mean([s == t.start.thing for t, s in zip(turns, seen, strict=True)])),
        "prompt": float(np.mean([s == t.thing for t, s in zip(turns, seen, strict=True)])),
    }


def to_markdown(metrics: dict[str, Any]) -> str:
    """The table and what it was measured with."""
    rows = [
        [
            f"{row['strength']:g}",
            row["steps"],
            f"{row['sigma']:.3g}",
            row["distance"],
            f"{100 * row['start']:.1f} %",
            f"{100 * row['prompt']:.1f} %",
        ]
        for row in metrics["rows"]
    ]
    head = ["strength", "steps", "from sigma", "distance to the start", "still the start's thing", "the prompt's thing"]
    return (
        f"{metrics['model']}, sha256 `{metrics['sha256'][:16]}`, {metrics['dtype']}; {metrics['pictures']} pictures of "
        "the data, each turned into another thing, picture i from seed i. The distance is the root mean square over "
        f"all pixels and channels, of 255.\n\n{table(head, rows)}"
    )


def strip(turns: Sequence[Turn], columns: Sequence[Sequence[Pixels]]) -> Image.Image:
    """A row a turn: the start, then the picture at each strength."""
    side = turns[0].picture.pixels.shape[0]
    cell = side + _GAP
    sheet = Image.new("RGB", ((len(columns) + 1) * cell + _GAP, len(turns) * (cell + _LABEL) + _LABEL), (236, 236, 236))
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(["start", *(f"{strength:g}" for strength in STRENGTHS)]):
        pen.text((_GAP + column * cell, 2), label, fill=(40, 40, 40))
    for row, turn in enumerate(turns):
        top = _LABEL + row * (cell + _LABEL)
        for column, picture in enumerate([turn.picture.pixels, *(pictures[row] for pictures in columns)]):
            sheet.paste(Image.fromarray(picture), (_GAP + column * cell, top))
        pen.text((_GAP, top + side + 1), turn.prompt, fill=(40, 40, 40))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="weights of the preset's model")
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--data", type=Path, required=True, help="what build_data.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="document whose figures are replaced")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    engine = load_engine(load_preset(args.preset).model, args.model, device=args.device, dtype=args.dtype)
    artist = Artist(engine, args.preset, args.batch_size)
    references = References(args.data)
    turns = choose_turns(args.data, references, args.pictures)
    rows, columns = [], []
    for strength in STRENGTHS:
        pictures, sigmas = artist.draw(turns, strength)
        found = judge(references, turns, pictures)
        rows.append({"strength": strength, "steps": len(sigmas) - 1, "sigma": sigmas[0], **found})
        columns.append(pictures)
        print(rows[-1], flush=True)
    metrics = {
        "model": args.model.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "pictures": len(turns),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "rows": rows,
    }
    markdown = to_markdown(metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "strength.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (args.out / "table.md").write_text(markdown + "\n", encoding="utf-8")
    strip(turns[:STRIP_ROWS], columns).save(args.out / "strip.png")
    print(markdown)
    if args.docs is not None:
        write_docs(args.docs, f"![From the start to the prompt, strength by strength]({STRIP_FILE})\n\n{markdown}")
        (args.docs.parent / STRIP_FILE).parent.mkdir(exist_ok=True)
        shutil.copyfile(args.out / "strip.png", args.docs.parent / STRIP_FILE)


if __name__ == "__main__":
    main()
