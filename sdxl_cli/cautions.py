"""What a person should know about a plan that can be drawn, but is hardly meant so."""

import math
import re
from collections.abc import Sequence

from sdxl_cli.console import Console, shorten
from sdxl_core.conditioning.tokenizer import MAX_TOKENS, Tokenizer
from sdxl_core.config import ModelConfig
from sdxl_core.diffusion.discretization import sigma_to_fractional_timestep, trained_levels
from sdxl_core.diffusion.handover import parse_handover
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.plan import Plan
from sdxl_core.texts import token_report

MOST_CFG_PP = 2.0


def warn_of_lost_words(plan: Plan, model: ModelConfig, console: Console) -> None:
    """Where a text has more tokens than fit, say how many and which words are not read."""
    for count in token_report(plan, model):
        if count.lost:
            tail = lost_tail(count.words)
            console.warn(
                f"the {count.text} has {count.tokens} tokens and only {MAX_TOKENS} fit: the last {count.lost} are "
                f"not read: ...{shorten(tail, 200)}"
            )


def warn_of_guidance(plan: Plan, console: Console) -> None:
    """The CFG++ forms add all of the guidance to the picture in every step, so a usual scale burns it.

    And at a scale of 1 there is no guidance for the methods to change, but for those that go on without it.
    """
    name, guider = plan.sampler.name, plan.guider
    if idle := guider.idle():
        console.warn(f"{', '.join(idle)}: no effect without guidance, and {guider.scale:g} is none: try --guidance 5")
    if SAMPLERS[name].uncond and guider.name != "identity" and guider.scale > MOST_CFG_PP:
        console.warn(f"{name} is meant for a guidance of 0.5 to 1.5, and {guider.scale:g} is more: try --guidance 1")


def warn_of_levels(plan: Plan, model: ModelConfig, refiner: ModelConfig | None, console: Console) -> None:
    """A specialist of low noise that is sent above what it was trained on spoils pictures, and only this says why."""
    if (found := _beyond(model, plan.sigmas())) is not None:
        told, share = found
        other = "draw with the model that it refines, and add --refiner"
        console.warn(f"{told}: {other if plan.source is None else _less('--strength ', plan.source.strength * share)}")
    if plan.refiner is None or refiner is None:
        return
    if (found := _beyond(refiner, plan.refiner_sigmas())) is not None:
        told, share = found
        less = _less("--refine sdedit@", parse_handover(plan.refiner.mode).value * share)
        later = f"try --refine share@{1 - (refiner.lowest_levels or 0) / refiner.denoiser.num_idx:g}"
        console.warn(f"{told}: {less if plan.switch() is None else later}")


def warn_of_resizing(plan: Plan, console: Console) -> None:
    """Outside a mask every byte stays, unless the whole picture has to be brought to another size first."""
    source = plan.source
    if source is None or not source.repaints_a_part or source.how.mask.only or source.canvas_size == plan.size:
        return
    (height, width), (h, w) = source.canvas_size, plan.size
    margins = " with its margins" if any(source.margins) else ""
    console.warn(
        f"{source.picture.name}{margins} is resized from {width}x{height} to {w}x{h}, so that what is not repainted "
        "changes too: try --only-masked, which leaves it byte for byte"
    )


def _beyond(model: ModelConfig, walked: Sequence[float]) -> tuple[str, float] | None:
    """That a walk begins above what a model was trained on, and the share of its steps that do not; None if all are."""
    if model.lowest_levels is None:
        return None
    table = trained_levels(model.denoiser)
    known = sum(sigma_to_fractional_timestep(sigma, table) < model.lowest_levels for sigma in walked[:-1])
    if known == len(walked) - 1:
        return None
    told = (
        f"{model.name} was trained on the lowest {model.lowest_levels} of {len(table)} noise levels, up to sigma "
        f"{table[model.lowest_levels - 1]:.4g}, and begins at {walked[0]:.4g} here, where it has never been"
    )
    return told, known / (len(walked) - 1)


def _less(flag: str, strength: float) -> str:
    rounded = math.floor(100 * strength + 1e-9) / 100  # up would be a step more
    return f"try {flag}{rounded:g}" if rounded else "take more steps"


def lost_tail(text: str) -> str:
    """The words at the end of a prompt that no text encoder reads, from the first that is not read in full."""
    words = re.findall(r"\s*\S+", text)
    count = Tokenizer("clip").count
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count("".join(words[:middle])) <= MAX_TOKENS else (low, middle - 1)
    return "".join(words[low:]).strip()
