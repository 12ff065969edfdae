"""Build the pictures and captions that the micro model is trained on.

    python benchmarks/micro/build_data.py OUT_DIR

Writes OUT_DIR/metadata.jsonl and OUT_DIR/pictures/ (the imagefolder layout that `sdxl train` reads), heldout.jsonl (the
combinations of thing, style and background that are kept out), references/ (every icon cut out, which evaluate.py
compares with) and build.json (what it was made from). The same arguments give the same files.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from captions import DEFAULT_BACKGROUND, plain_caption, write_caption
from drawing import PALETTE, compose, degrade, fit, rasterise, visible_share
from PIL import Image
from sources import PACKAGES, STYLES, load_icon_sets, load_names
from things import CORE_THINGS, Thing, load_things

Icons = dict[tuple[str, str], Image.Image]  # (thing name, style) -> RGBA cut-out
Combo = tuple[Thing, str, str]  # thing, style, background

SHARES = {"single": 0.70, "wide": 0.12, "small": 0.10, "pair": 0.08}
HELD_OUT = 0.11  # of the combinations not on white: about 10 % of all
MIN_VISIBLE = 0.16  # of the icon's area; less than that, and the picture shows nearly nothing
SCALE = (0.84, 0.92)  # of the short side
SHIFT = 0.015  # of the side, as standard deviation around the centre
OTHER_NAME = 0.15
BEST_SCORE, WORST_SCORE = 6.0, 1.0  # aesthetic scores of a drawing as it is and of its worst copy


@dataclass(frozen=True)
class Placed:
    """One icon in a picture: box side and centre in pixels."""

    thing: str
    width: float
    height: float
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    """One picture to draw, `size` is (height, width)."""

    file_name: str
    text: str
    kind: str
    style: str
    background: str
    size: tuple[int, int]
    placed: tuple[Placed, ...]
    harm: float = 0.0  # 0: as drawn; up to 1: the worst copy

    @property
    def score(self) -> float:
        """Its aesthetic score."""
        return round(BEST_SCORE - (BEST_SCORE - WORST_SCORE) * self.harm, 2)

    def row(self) -> dict[str, object]:
        """Its line in metadata.jsonl."""
        row: dict[str, object] = {"file_name": self.file_name, "text": self.text, "thing": self.placed[0].thing}
        if len(self.placed) > 1:
            row["thing_2"] = self.placed[1].thing
        size = {"width": self.size[1], "height": self.size[0]}
        row |= {"style": self.style, "background": self.background, "kind": self.kind}
        return row | size | {"aesthetic_score": self.score}


def is_held_out(thing: str, style: str, background: str) -> bool:
    """Whether a combination is kept out of training; depends on its words alone, so it never changes."""
    # A thing must be seen on white in both styles, or its bare name would mean another style's drawing only.
    if background == DEFAULT_BACKGROUND:
        return False
    digest = hashlib.sha256(f"{thing}/{style}/{background}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def split_combos(things: list[Thing], icons: Icons) -> tuple[list[Combo], list[Combo]]:
    """All combinations that can be seen, as (training, held out)."""
    training: list[Combo] = []
    held_out: list[Combo] = []
    for thing in things:
        for style in STYLES:
            for background in PALETTE:
                if visible_share(icons[thing.name, style], background) >= MIN_VISIBLE:
                    target = held_out if is_held_out(thing.name, style, background) else training
                    target.append((thing, style, background))
    return training, held_out


def endless(rng: random.Random, combos: list[Combo]) -> Iterator[Combo]:
    """All combinations in ever new order, those on white twice as often: bare prompts fall there."""
    pool = combos + [combo for combo in combos if combo[2] == DEFAULT_BACKGROUND]
    while True:
        rng.shuffle(pool)
        yield from pool


def choose_size(rng: random.Random, kind: str, side: int) -> tuple[int, int]:
    """Height and width in pixels: small originals and pictures that are longer one way give real size conditions."""
    if kind == "small":
        small = rng.choice((0.25, 0.3125, 0.375, 0.4375, 0.5))
        return round(side * small), round(side * small)
    if kind == "wide":
        long = round(side * rng.choice((1.125, 1.25, 1.25, 1.5)))
        return (side, long) if rng.random() < 0.5 else (long, side)
    return side, side


def place_one(rng: random.Random, thing: Thing, size: tuple[int, int]) -> Placed:
    """A thing near the centre, wholly inside."""
    short = min(size)
    box = short * rng.uniform(*SCALE)
    room = (short - box) / 2
    dx, dy = (min(room, max(-room, rng.gauss(0, SHIFT * short))) for _ in range(2))
    return Placed(thing.name, box, box, size[1] / 2 + dx, size[0] / 2 + dy)


def place_two(rng: random.Random, pair: tuple[Thing, Thing], side: int) -> tuple[Placed, Placed]:
    """Two things side by side, the first on the left."""
    box = side * rng.uniform(0.44, 0.48)
    left, right = (
        Placed(
            thing.name,
            box,
            side * 0.9,
            side * centre,
            side / 2 + rng.gauss(0, SHIFT * side / 2),
        )
        for thing, centre in zip(pair, (0.255, 0.745), strict=True)
    )
    return left, right


def noun(rng: random.Random, thing: Thing) -> str:
    """Its name, now and then another one."""
    return rng.choice(thing.also) if thing.also and rng.random() < OTHER_NAME else thing.name


def plan_pictures(
    things: list[Thing], training: list[Combo], count: int, side: int, seed: int, degraded: float = 0.0
) -> list[Picture]:
    """Every picture of the set, in a mixed order; a share of them `degraded`."""
    rng = random.Random(seed)
    counts = {kind: round(count * share) for kind, share in SHARES.items()}
    allowed = {(thing.name, style, background) for thing, style, background in training}
    kinds = [kind for kind, n in counts.items() for _ in range(n)]
    rng.shuffle(kinds)
    streams = {kind: endless(rng, training) for kind in counts}
    pictures = []
    for index, kind in enumerate(kinds):
        thing, style, background = next(streams[kind])
        size = choose_size(rng, kind, side)
        words = [noun(rng, thing)]
        if kind == "pair":
            others = (rng.choice(things) for _ in iter(int, 1))
            other = next(o for o in others if o != thing and (o.name, style, background) in allowed)
            words.append(noun(rng, other))
            placed: tuple[Placed, ...] = place_two(rng, (thing, other), side)
            phrase = f"{thing.phrase(words[0])} and {other.phrase(words[1])}"
        else:
            placed = (place_one(rng, thing, size),)
            phrase = thing.phrase(words[0])
        text = write_caption(rng, phrase, " and ".join(words), style, background)
        file_name = f"pictures/{index // 1000:03d}/{index:06d}.png"
        # Drawn from a generator of its own: whatever the share, the pictures are the same.
        harm = random.Random(f"{seed}/{index}").uniform(-(1 - degraded), degraded) / (degraded or 1)
        pictures.append(Picture(file_name, text, kind, style, background, size, placed, max(0.0, harm)))
    return pictures


def draw(picture: Picture, icons: Icons) -> Image.Image:
    """The picture itself."""
    placed = [(fit(icons[p.thing, picture.style], p.width, p.height), p.x, p.y) for p in picture.placed]
    drawn = compose(picture.size, picture.background, placed)
    return degrade(drawn, picture.harm, random.Random(picture.file_name)) if picture.harm else drawn


def draw_all(pictures: list[Picture], icons: Icons, out: Path) -> None:
    """Draw and write a share of the pictures."""
    for picture in pictures:
        draw(picture, icons).save(out / picture.file_name, compress_level=2)


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def build(
    out: Path, things_count: int, pictures_count: int, side: int, seed: int, processes: int, degraded: float
) -> None:
    """Fetch the icons, and draw the set."""
    sets, official = load_icon_sets(out / "packages"), load_names(out / "packages")
    things = load_things(things_count, sets, official)
    icons = {(t.name, style): rasterise(sets[style], t.slug, side * 2) for t in things for style in sets}
    record = write_set(out, things, icons, pictures_count, side, seed, processes, degraded)
    print(f"{pictures_count} pictures of {len(things)} things; combinations: {record['combinations']}")


def write_set(
    out: Path,
    things: list[Thing],
    icons: Icons,
    count: int,
    side: int,
    seed: int,
    processes: int = 1,
    degraded: float = 0.0,
) -> dict[str, Any]:
    """Write everything; metadata.jsonl last, so that a set that was broken off is not taken for a whole one."""
    training, held_out = split_combos(things, icons)
    pictures = plan_pictures(things, training, count, side, seed, degraded)
    for folder in {(out / p.file_name).parent for p in pictures}:
        folder.mkdir(parents=True, exist_ok=True)
    for (name, style), icon in icons.items():
        (out / "references" / style).mkdir(parents=True, exist_ok=True)
        icon.save(out / "references" / style / f"{name}.png")
    draw_in_processes(pictures, icons, out, processes)
    rows = (
        {"thing": t.name, "style": s, "background": b, "text": plain_caption(t.phrase(), s, b)} for t, s, b in held_out
    )
    write_lines(out / "heldout.jsonl", rows)
    seen = len(training) + len(held_out)
    record = {
        "size": side,
        "seed": seed,
        "pictures": len(pictures),
        "degraded": sum(picture.harm > 0 for picture in pictures),
        "palette": PALETTE,
        "styles": list(STYLES),
        "packages": [asdict(package) for package in PACKAGES],
        "things": [asdict(t) | {"phrase": t.phrase()} for t in things],
        "combinations": {
            "training": len(training),
            "held_out": len(held_out),
            "hidden": len(things) * len(STYLES) * len(PALETTE) - seen,
        },
    }
    (out / "build.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    write_lines(out / "metadata.jsonl", (picture.row() for picture in pictures))
    return record


def draw_in_processes(pictures: list[Picture], icons: Icons, out: Path, processes: int) -> None:
    """Share the drawing out."""
    if processes == 1:
        draw_all(pictures, icons, out)
        return
    fork = multiprocessing.get_context("fork")  # the icons reach the workers without being pickled
    shares = (list(islice(pictures, i, None, processes)) for i in range(processes))
    workers = [fork.Process(target=draw_all, args=(share, icons, out)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a drawing process failed; see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels")
    parser.add_argument("--things", type=int, default=CORE_THINGS, help="how many things of things.toml")
    parser.add_argument("--pictures", type=int, default=26_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--degraded", type=float, default=0.0, help="share of worse copies with low scores, for the refiner"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    build(args.out, args.things, args.pictures, args.size, args.seed, args.processes, args.degraded)


if __name__ == "__main__":
    main()
