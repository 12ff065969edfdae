"""The arithmetic of one picture, part by part, as `sdxl gen --dry-run` counts it, and by what it is for.

    python benchmarks/flops.py [--preset sdxl-base-1.0] [--size 1024x1024] [--steps 30] [--guidance 5] [--refiner]

Needs no weights. The last rows are those of single calls: a guided step is two rows of the network at once.
"""

import argparse
import json
from typing import Any

from sdxl_core.flops import Work, decoder_work, encoder_work, network_work, text_work
from sdxl_core.plan import build_plan
from sdxl_core.presets import load_preset
from sdxl_core.work import plan_work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sdxl-base-1.0")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="default: the preset's own")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--refiner", action="store_true", help="finish with the preset's refiner")
    parser.add_argument("--json", action="store_true", help="one object a row, in operations")
    args = parser.parse_args()
    flags: dict[str, Any] = {}
    if args.size:
        width, height = (int(side) for side in args.size.split("x"))
        flags["recipe.size"] = (height, width)
    if args.steps is not None:
        flags["recipe.steps"] = args.steps
    if args.guidance is not None:
        flags["recipe.guider.scale"] = args.guidance
    rows = table(args.preset, flags, refiner=args.refiner)
    if args.json:
        for name, calls, work in rows:
            kinds = {"linear": work.linear, "conv": work.conv, "attention": work.attention}
            print(json.dumps({"part": name, "calls": calls, **kinds, "total": work.total}))
        return
    print("| part | calls | linear | conv | attention | TFLOP |\n|---|---|---|---|---|---|")
    for name, calls, work in rows:
        kinds_shown = " | ".join(f"{kind / 1e12:.4f}" for kind in (work.linear, work.conv, work.attention))
        print(f"| {name} | {'' if calls is None else calls} | {kinds_shown} | {work.total / 1e12:.4f} |")


def table(name: str, flags: dict[str, Any], *, refiner: bool) -> list[tuple[str, int | None, Work]]:
    """(part, calls, work) of a plan, then of single calls."""
    preset = load_preset(name, overrides=flags)
    second = load_preset(preset.recipe.refiner.preset) if refiner and preset.recipe.refiner.preset else None
    plan = build_plan(preset, "a cat", refiner=second)
    rows = [
        (f"{part.name} ({part.model})", part.calls, part.work or Work())
        for part in plan_work(plan, preset.model, None if second is None else second.model)
    ]
    rows.append(("a picture", None, sum((work for _, _, work in rows), Work())))
    model, (height, width) = preset.model, plan.size
    latent = height // model.first_stage.factor, width // model.first_stage.factor
    rows.append(("one row of the network", 1, network_work(model.network, latent)))
    rows.append(("one guided step", 1, network_work(model.network, latent) * 2))
    rows.append(("encoding a picture", 1, encoder_work(model.first_stage, plan.size)))
    rows.append(("decoding a picture", 1, decoder_work(model.first_stage, plan.size)))
    rows.append(("encoding a prompt", 1, text_work(model.conditioner)))
    return rows


if __name__ == "__main__":
    main()
