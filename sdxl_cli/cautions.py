"""What a person should know about a plan that can be drawn, but is hardly meant so."""

import re

from sdxl_cli.console import Console, shorten
from sdxl_core.conditioning.tokenizer import MAX_TOKENS, Tokenizer
from sdxl_core.config import ModelConfig
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


def lost_tail(text: str) -> str:
    """The words at the end of a prompt that no text encoder reads, from the first that is not read in full."""
    words = re.findall(r"\s*\S+", text)
    count = Tokenizer("clip").count
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count("".join(words[:middle])) <= MAX_TOKENS else (low, middle - 1)
    return "".join(words[low:]).strip()
