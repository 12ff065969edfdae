"""What evaluate.py asks the model to draw: prompts with what must be seen, chosen once and for all by a fixed seed."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from captions import DEFAULT_BACKGROUND, plain_caption

CHOICE_SEED = 2026


@dataclass(frozen=True)
class Case:
    """One picture to make: `style` None where the prompt leaves it open, two `things` for a pair, sizes (h, w)."""

    prompt: str
    things: tuple[str, ...]
    style: str | None
    background: str
    seed: int
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class RealPicture:
    """A picture of the training data with what it shows."""

    path: Path
    thing: str
    style: str
    background: str


@dataclass(frozen=True)
class Cases:
    """All sets of prompts, and real pictures to judge the judge by."""

    trained: list[Case]
    held_out: list[Case]
    bare: list[Case]
    pairs: list[Case]
    real: list[RealPicture]


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def choose_cases(data: Path, phrases: dict[str, str], things: int, per_thing: int = 3) -> Cases:
    """Choose the prompts.

    Args:
        data: Folder that build_data.py wrote.
        phrases: Every thing with its article.
        things: How many things to ask for; as many as there are, if fewer.
        per_thing: Prompts a thing: one in each style, then any, all on other backgrounds.
    """
    rng = random.Random(CHOICE_SEED)
    rows = _rows(data / "metadata.jsonl")
    seen: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row["kind"] == "single":
            backgrounds = seen.setdefault(row["thing"], {}).setdefault(row["style"], [])
            if row["background"] not in backgrounds:
                backgrounds.append(row["background"])
    chosen = rng.sample(sorted(seen), min(things, len(seen)))
    trained: list[Case] = []
    for thing in chosen:
        styles = sorted(seen[thing])
        used: list[str] = []
        for turn in range(per_thing):
            style = styles[turn] if turn < len(styles) else rng.choice(styles)
            background = rng.choice([b for b in sorted(seen[thing][style]) if b not in used])
            used.append(background)
            trained.append(_case(phrases, thing, style, background, len(trained)))
    held_rows = _rows(data / "heldout.jsonl")
    held = [_case(phrases, r["thing"], r["style"], r["background"], i) for i, r in enumerate(held_rows)]
    rng.shuffle(held)
    bare = [Case(phrases[t], (t,), None, DEFAULT_BACKGROUND, i) for i, t in enumerate(chosen[: things // 2])]
    singles = [r for r in rows if r["kind"] == "single"]
    real = [
        RealPicture(data / r["file_name"], r["thing"], r["style"], r["background"])
        for r in rng.sample(singles, min(300, len(singles)))
    ]
    return Cases(trained, held[:things], bare, _pairs(rng, chosen, phrases, seen, things // 3), real)


def _case(phrases: dict[str, str], thing: str, style: str, background: str, seed: int) -> Case:
    return Case(plain_caption(phrases[thing], style, background), (thing,), style, background, seed)


def _pairs(
    rng: random.Random, things: list[str], phrases: dict[str, str], seen: dict[str, dict[str, list[str]]], count: int
) -> list[Case]:
    """Two things side by side, on backgrounds where each was seen alone."""
    pairs: list[Case] = []
    while len(pairs) < count and len(things) > 1:
        left, right = rng.sample(things, 2)
        style = rng.choice(sorted(seen[left]))
        shared = sorted(set(seen[left][style]) & set(seen[right].get(style, ())))
        if shared:
            background = rng.choice(shared)
            text = plain_caption(f"{phrases[left]} and {phrases[right]}", style, background)
            pairs.append(Case(text, (left, right), style, background, len(pairs)))
    return pairs


def with_crops(cases: list[Case], side: int) -> dict[str, dict[int, list[Case]]]:
    """The same pictures as if cut from ones that are a quarter longer, at corners along the long side: by axis."""
    long = side * 5 // 4
    steps = range(0, long - side + 1, (long - side) // 4)
    return {
        "left": {s: [replace(c, original_size=(side, long), crop=(0, s)) for c in cases] for s in steps},
        "top": {s: [replace(c, original_size=(long, side), crop=(s, 0)) for c in cases] for s in steps},
    }
