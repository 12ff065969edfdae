"""Measure the micro model: does it draw the thing, the background and the style that the prompt names?

    python benchmarks/micro/evaluate.py --model micro.safetensors --data DATA --out DIR [--docs docs/micro.md]

DATA is what build_data.py wrote. Writes DIR/metrics.json, DIR/tables.md and DIR/grid.png; with --docs also puts the
tables between that document's marks, and the grid into images/ beside it.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case, Cases, RealPicture, choose_cases, with_crops
from drawing import compose, fit
from metric import Pixels, References, centre, sharpness
from PIL import Image
from report import grid, to_markdown, write_docs

from sdxl_core.batching import batches
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import decode, sample
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import Preset, load_preset

GUIDANCE = (1.0, 2.0, 3.0, 5.0, 7.5)
STEPS = (5, 10, 20, 30, 50)
ORIGINAL_SIZES = (0.25, 0.3125, 0.375, 0.4375, 0.5, 1.0)  # of the picture's side; what the data has
GRID_FILE = "images/micro.png"  # beside the document
GRID = (
    "a cat",
    "a dog",
    "a red apple on a blue background",
    "a rocket on a black background, flat style",
    "a pizza, noto style, green background",
    "a house on a yellow background, noto style",
    "a car on a pink background",
    "a tree, flat style",
    "a fish on an orange background, flat style",
    "an owl on a purple background, noto style",
    "a unicorn on a gray background",
    "a snowman on a blue background, flat style",
    "a guitar on a white background, noto style",
    "a donut on a red background, flat style",
    "a robot on a green background",
    "a blue heart on a yellow background",
    "a penguin, noto style",
    "a penguin, flat style",
    "a cactus on a red background, noto style",
    "a cactus on a red background, flat style",
    "a cat and a dog on a white background, noto style",
    "a sun and a moon on a black background, flat style",
    "a red apple and a green apple, noto style",
    "a burger and fries on a yellow background, flat style",
)


@dataclass(frozen=True)
class Settings:
    """What a sweep changes; None leaves the recipe's value."""

    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Artist:
    """A model with the recipe to run it by."""

    engine: Engine
    preset: Preset
    batch_size: int

    def draw(self, cases: Sequence[Case], settings: Settings = Settings()) -> list[Pixels]:
        """One picture a case."""
        return self.decode(self.latents([self.plan(case, settings) for case in cases]))

    def plan(self, case: Case, settings: Settings) -> Plan:
        """The preset's plan for a case, with what the case sets."""
        plan = build_plan(self.preset, case.prompt, seed=case.seed)
        update: dict[str, Any] = {"crop_coords_top_left": case.crop}
        if case.original_size is not None:
            update["original_size"] = case.original_size
        if settings.steps is not None:
            update["steps"] = settings.steps
        if settings.guidance is not None:
            update["guider"] = plan.guider.model_copy(update={"name": "vanilla_cfg", "scale": settings.guidance})
        return plan.model_copy(update=update)

    def latents(self, plans: Sequence[Plan]) -> torch.Tensor:
        """Latents of all plans, in order."""
        found = []
        for group in batches(plans, self.batch_size):
            *_, last = sample(self.engine, group)
            found.append(last.x.cpu())
        return torch.cat(found)

    def decode(self, latents: torch.Tensor) -> list[Pixels]:
        """Latents to pictures."""
        return decode(self.engine, latents)

    def rebuild(self, picture: Pixels) -> Pixels:
        """A picture through the first stage and back."""
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        with torch.inference_mode():
            latent = self.engine.first_stage.encode(image.to(self.engine.device, self.engine.first_stage_dtype))
        return self.decode(latent.float())[0]


def judge(references: References, pictures: Sequence[Pixels], cases: Sequence[Case]) -> dict[str, Any]:
    """Shares of pictures with the right thing, background and, where one was asked for, style."""
    things, backgrounds, styles, wrong = [], [], [], []
    for picture, case in zip(pictures, cases, strict=True):
        seen = _things_seen(references, picture, case)
        things.append(seen == case.things)
        backgrounds.append(references.background(picture) == case.background)
        if len(case.things) == 1 and case.style is not None:
            styles.append(references.style(picture, case.things[0], case.background) == case.style)
        if seen != case.things:
            wrong.append(f"{case.prompt} -> {' and '.join(seen)}")
    result: dict[str, Any] = {"pictures": len(cases), "thing": np.mean(things), "background": np.mean(backgrounds)}
    if styles:
        result["style"] = np.mean(styles)
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in result.items()} | {"wrong": wrong}


def _things_seen(references: References, picture: Pixels, case: Case) -> tuple[str, ...]:
    if len(case.things) == 2:
        assert case.style is not None
        middle = picture.shape[1] // 2
        halves = (picture[:, :middle], picture[:, middle:])
        return tuple(references.thing(half, case.style, case.background, half=True) for half in halves)
    styles = references.styles if case.style is None else [case.style]
    nearest = np.min([references.distances(picture, style, case.background) for style in styles], axis=0)
    return (references.things[int(nearest.argmin())],)


def measure_sets(artist: Artist, references: References, cases: Cases) -> dict[str, Any]:
    """The main table: the model on its prompts, and the same judge on real pictures for comparison."""
    sets: dict[str, Any] = {}
    named = {
        "trained combinations": cases.trained,
        "combinations kept out of training": cases.held_out,
        'thing alone, as "a cat"': cases.bare,
        "two things (both right)": cases.pairs,
    }
    for name, wanted in named.items():
        if wanted:
            start = time.perf_counter()
            pictures = artist.draw(wanted)
            seconds = (time.perf_counter() - start) / len(wanted)
            sets[name] = judge(references, pictures, wanted) | {"seconds": seconds}
            print(f"{name}: {_line(sets[name])}", flush=True)
    real = [_open(r) for r in cases.real]
    shown = [Case("", (r.thing,), r.style, r.background, 0) for r in cases.real]
    sets["real pictures of the data"] = judge(references, real, shown)
    sets["the same through the autoencoder"] = judge(references, [artist.rebuild(p) for p in real], shown)
    return sets


def _open(real: RealPicture) -> Pixels:
    with Image.open(real.path) as file:
        return np.asarray(file.convert("RGB"))


def _line(result: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.3f}" for k, v in result.items() if isinstance(v, float))


def sweep(artist: Artist, references: References, cases: list[Case], by_value: dict[float, Settings]) -> list[Any]:
    """The same pictures at other steps or guidance."""
    rows = []
    for value, settings in by_value.items():
        start = time.perf_counter()
        pictures = artist.draw(cases, settings)
        seconds = (time.perf_counter() - start) / len(cases)
        rows.append(judge(references, pictures, cases) | {"value": value, "seconds": seconds})
        rows[-1].pop("wrong")
        print(f"{settings}: {_line(rows[-1])}", flush=True)
    return rows


def measure_crop(artist: Artist, cases: list[Case], side: int) -> dict[str, Any]:
    """Mean centre of what is drawn against the corner the model is told of."""
    result = {}
    for axis, by_step in with_crops(cases, side).items():
        found = []
        for wanted in by_step.values():
            centres = [c for c in map(centre, artist.draw(wanted)) if c is not None]
            found.append(float(np.mean([c[0 if axis == "left" else 1] for c in centres])))
        steps = list(by_step)
        result[axis] = {
            "steps": steps,
            "centre": found,
            "expected": [side * 5 / 8 - step for step in steps],
            "slope": float(np.polyfit(steps, found, 1)[0]),
        }
    return result


def measure_original_size(
    artist: Artist, references: References, data: Path, cases: list[Case]
) -> list[dict[str, Any]]:
    """Sharpness and recognisability against the size that the model is told the original had."""
    rows = []
    for share in ORIGINAL_SIZES:
        size = round(references.side * share)
        told = [Case(c.prompt, c.things, c.style, c.background, c.seed, (size, size)) for c in cases]
        pictures = artist.draw(told)
        real = [_enlarged(data, c, size, references.side) for c in cases]
        rows.append(
            {
                "size": size,
                "sharpness": float(np.mean([sharpness(p) for p in pictures])),
                "data": float(np.mean([sharpness(p) for p in real])),
                "thing": judge(references, pictures, told)["thing"],
            }
        )
    return rows


def _enlarged(data: Path, case: Case, size: int, side: int) -> Pixels:
    """A case's drawing made at `size` and enlarged to `side`, as the trainer does with small originals."""
    with Image.open(data / "references" / str(case.style) / f"{case.things[0]}.png") as file:
        icon = fit(file.convert("RGBA"), 0.86 * size, 0.86 * size)
    small = compose((size, size), case.background, [(icon, size / 2, size / 2)])
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def evaluate(artist: Artist, data: Path, things: int, subset: int) -> dict[str, Any]:
    """Everything, as one record."""
    references = References(data)
    cases = choose_cases(data, references.phrases, things)
    # The list has a flat, a noto and another picture of every thing; as many things as there can be, style by turns.
    few = [cases.trained[3 * i + i % 2] for i in range(len(cases.trained) // 3)][:subset]
    metrics: dict[str, Any] = {"sets": measure_sets(artist, references, cases)}
    metrics["guidance_sweep"] = sweep(artist, references, few, {g: Settings(guidance=g) for g in GUIDANCE})
    metrics["steps_sweep"] = sweep(artist, references, few, {s: Settings(steps=s) for s in STEPS})
    metrics["crop"] = measure_crop(artist, few[: subset // 3], references.side)
    metrics["original_size"] = measure_original_size(artist, references, data, few[: subset // 2])
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="weights of the preset's model")
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--data", type=Path, required=True, help="what build_data.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="document whose figures are replaced")
    parser.add_argument("--things", type=int, default=200)
    parser.add_argument("--subset", type=int, default=64, help="pictures at each guidance scale and number of steps")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    preset = load_preset(args.preset, {"recipe.steps": args.steps, "recipe.guider.scale": args.guidance})
    engine = load_engine(preset.model, args.model, device=args.device, dtype=args.dtype)
    artist = Artist(engine, preset, args.batch_size)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = artist.draw([Case(prompt, (), None, "", index) for index, prompt in enumerate(GRID)])
    grid(pictures, GRID).save(args.out / "grid.png")
    metrics = {
        "model": args.model.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "steps": preset.recipe.steps,
        "guidance": preset.recipe.guider.scale,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "torch_threads": torch.get_num_threads(),
    } | evaluate(artist, args.data, args.things, args.subset)
    markdown = to_markdown(metrics)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (args.out / "tables.md").write_text(markdown + "\n", encoding="utf-8")
    print(markdown)
    if args.docs is not None:
        write_docs(args.docs, f"![What micro draws, each with its prompt]({GRID_FILE})\n\n{markdown}")
        (args.docs.parent / GRID_FILE).parent.mkdir(exist_ok=True)
        shutil.copyfile(args.out / "grid.png", args.docs.parent / GRID_FILE)


if __name__ == "__main__":
    main()
