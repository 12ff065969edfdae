"""Measure micro's refiner: are pictures that it finishes closer to real ones, and what is the score?

    python benchmarks/micro/evaluate_refiner.py --base micro.safetensors --refiner micro-refiner.safetensors \
        --data DATA --out DIR [--docs docs/micro.md]

DATA is what build_data.py wrote (without --degraded). Both ways make the same number of model calls, from the same
noise, and are decoded by the same first stage. Writes DIR/refiner.json and DIR/refiner.png; with --docs also puts the
tables between that document's marks, and the picture into images/ beside it.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build_data import BEST_SCORE, WORST_SCORE
from cases import Case, choose_cases
from metric import Pixels, References, reduce, sharpness
from PIL import Image
from report import grid, table, write_docs

from sdxl_core.diffusion.discretization import trained_levels
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import decode, walk
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import Preset, load_preset

LEVELS = 200  # of the 1000 trained ones that the refiner knows
SCORES = (WORST_SCORE, 2.5, 4.0, BEST_SCORE, 7.5)
PICTURE_FILE = "images/micro-refiner.png"
SHOWN = 8


@dataclass(frozen=True)
class Model:
    """One of the two models with the recipe to run it by."""

    engine: Engine
    preset: Preset

    def plans(self, prompts: Sequence[str], seeds: Sequence[int], **changes: Any) -> list[Plan]:
        """A plan a prompt."""
        plans = [build_plan(self.preset, prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [plan.model_copy(update=changes) for plan in plans]

    def walk(self, plans: Sequence[Plan], x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
        """From latents at sigmas[0] to latents at the last level; the sampler draws no noise."""
        parts = []
        for start in range(0, len(plans), 32):
            rows = slice(start, start + 32)
            noise = PictureNoise([plan.seed for plan in plans[rows]], tuple(x.shape[1:]))
            *_, last = walk(self.engine, plans[rows], x[rows], sigmas, noise)
            parts.append(last.x.cpu())
        return torch.cat(parts)


def error(picture: Pixels, truth: Pixels) -> float:
    """Root mean square difference of two pictures, in levels of 255."""
    return float(np.sqrt(np.square(picture.astype(np.float32) - truth.astype(np.float32)).mean()))


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def from_real_pictures(
    base: Model, refiner: Model, data: Path, count: int
) -> tuple[dict[str, Any], list[list[Pixels]]]:
    """Real pictures, noised to where the refiner takes over and denoised by either model, against themselves."""
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["kind"] == "single"][:count]
    truth = [np.asarray(Image.open(data / row["file_name"]).convert("RGB")) for row in rows]
    prompts, seeds = [row["text"] for row in rows], list(range(len(rows)))
    first_stage, dtype = base.engine.first_stage, base.engine.first_stage_dtype
    with torch.inference_mode():
        images = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float().div(127.5).sub(1) for p in truth]
        latents = torch.cat([first_stage.encode(image.to(dtype)).float() for image in images])
    sigmas = rest(base.plans(prompts[:1], [0])[0])[1]
    noise = PictureNoise(seeds, tuple(latents.shape[1:]))
    x = latents + sigmas[0] * noise()
    ways = {
        "through the first stage alone": latents,
        "base": base.walk(base.plans(prompts, seeds), x, sigmas),
        "refiner": refiner.walk(refiner.plans(prompts, seeds), x, sigmas),
    }
    unguided = refiner.preset.recipe.guider.model_copy(update={"scale": 1.0})
    for score in SCORES:
        plans = refiner.plans(prompts, seeds, aesthetic_score=score, guider=unguided)
        ways[f"refiner, score {score:g}, no guidance"] = refiner.walk(plans, x, sigmas)
    pictures = {name: decode(base.engine, z) for name, z in ways.items()}
    facts = {
        name: {
            "error": mean([error(a, b) for a, b in zip(found, truth, strict=True)]),
            "sharpness": mean([sharpness(picture) for picture in found]),
        }
        for name, found in pictures.items()
    }
    facts["the pictures themselves"] = {"error": 0.0, "sharpness": mean([sharpness(picture) for picture in truth])}
    shown = ("base", "refiner", f"refiner, score {WORST_SCORE:g}, no guidance")
    return {"sigma": sigmas[0], "calls": len(sigmas) - 1, "ways": facts}, [truth, *(pictures[name] for name in shown)]


def rest(plan: Plan) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The levels of a plan, cut at the first one that the refiner knows: the base's part and the refiner's."""
    sigmas = plan.sigmas()
    highest = float(trained_levels(plan.denoiser)[LEVELS - 1])
    cut = next(i for i, sigma in enumerate(sigmas) if sigma <= highest)
    return sigmas[: cut + 1], sigmas[cut:]


def from_noise(base: Model, refiner: Model, references: References, cases: Sequence[Case]) -> dict[str, Any]:
    """The same seeds by the base alone and with the refiner for the last levels, against the nearest drawing."""
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    plans = base.plans(prompts, seeds)
    first, second = rest(plans[0])
    config = base.engine.config
    side = config.native_size[0] // config.first_stage.factor
    noise = PictureNoise(seeds, (config.first_stage.z_channels, side, side))
    x = base.walk(plans, noise.start(first[0]), first)
    ways = {
        "base alone": base.walk(plans, x, second),
        "base, then refiner": refiner.walk(refiner.plans(prompts, seeds), x, second),
    }
    facts = {}
    for name, latents in ways.items():
        pictures = decode(base.engine, latents)
        near = [_nearest(references, picture, case) for picture, case in zip(pictures, cases, strict=True)]
        facts[name] = {"nearest": mean(near), "sharpness": mean([sharpness(picture) for picture in pictures])}
    return {"calls": len(first) + len(second) - 2, "switch": len(first) - 1, "pictures": len(cases), "ways": facts}


def _nearest(references: References, picture: Pixels, case: Case) -> float:
    """Root mean square distance, at a quarter of the size, to the nearest placing of the thing that was asked for."""
    index = references.things.index(case.things[0])
    squared = float(references.distances(picture, str(case.style), case.background, only=index)[0])
    return float(np.sqrt(max(squared, 0.0) / reduce(picture).size))


def to_markdown(facts: dict[str, Any]) -> str:
    """Both tables."""
    real, drawn = facts["real"], facts["drawn"]
    return "\n\n".join(
        [
            f"From noise: {drawn['pictures']} prompts and seeds, {drawn['calls']} model calls each; with the refiner, "
            f"{drawn['switch']} are the base's. Error is the distance to the nearest placing of the drawing that was "
            "asked for, at a quarter of the size, in levels of 255; sharpness the mean squared Laplacian.",
            table(["", "error", "sharpness"], [[k, v["nearest"], v["sharpness"]] for k, v in drawn["ways"].items()]),
            f"From real pictures: {facts['count']} of the data, noised to sigma {real['sigma']:.3f}, where the refiner "
            f"takes over, and denoised in {real['calls']} model calls. Error is the difference to the picture itself, "
            "at full size. The last rows show the aesthetic score alone.",
            table(["", "error", "sharpness"], [[k, v["error"], v["sharpness"]] for k, v in real["ways"].items()]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--refiner", type=Path, required=True, help="lies beside the base's file")
    parser.add_argument("--data", type=Path, required=True, help="what build_data.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="document whose figures are replaced")
    parser.add_argument("--count", type=int, default=192, help="pictures of each kind")
    args = parser.parse_args()
    models = []
    for name, path in (("micro", args.base), ("micro-refiner", args.refiner)):
        preset = load_preset(name)
        models.append(Model(load_engine(preset.model, path), preset))
    base, refiner = models
    references = References(args.data)
    cases = choose_cases(args.data, references.phrases, args.count // 2).trained
    cases = [case for index, case in enumerate(cases) if index % 3 < 2][: args.count]
    real, shown = from_real_pictures(base, refiner, args.data, args.count)
    facts = {"count": args.count, "real": real, "drawn": from_noise(base, refiner, references, cases)}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "refiner.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    labels = ("real", "base", "refiner", "refiner told 'worst'")
    picked = [(row[i], label) for row, label in zip(shown, labels, strict=True) for i in range(SHOWN)]
    sheet = grid([picture for picture, _ in picked], [label for _, label in picked])
    sheet.save(args.out / "refiner.png")
    markdown = to_markdown(facts)
    print(markdown)
    if args.docs is not None:
        picture = f"![Real pictures, and what three ways make of them]({PICTURE_FILE})"
        write_docs(args.docs, f"{picture}\n\n{markdown}", "refiner")
        shutil.copyfile(args.out / "refiner.png", args.docs.parent / PICTURE_FILE)


if __name__ == "__main__":
    main()
