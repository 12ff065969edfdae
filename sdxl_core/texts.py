"""The texts of a plan: whether they can be read, and how much of them is. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_core.conditioning.tokenizer import MAX_TOKENS, Tokenizer
from sdxl_core.config import ModelConfig, SizeEmbedderConfig
from sdxl_core.errors import UsageError

if TYPE_CHECKING:
    from sdxl_core.plan import Plan


def check_texts(texts: Mapping[str, str | None], *, allow_empty_prompt: bool = False) -> None:
    """Refuse texts that are no text, and a prompt that says nothing.

    Raises:
        UsageError: names the text.
    """
    for name, text in texts.items():
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the {name} is not valid UTF-8: character {error.start + 1} cannot be read", hint="save it as UTF-8"
            ) from None
    if not allow_empty_prompt and not (texts["prompt"] or "").strip() and not (texts["prompt_2"] or "").strip():
        raise UsageError("the prompt is empty", hint="say what to draw")


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How long one text of a plan is.

    Args:
        text: prompt, prompt_2, negative or negative_2.
        tokens: in the text tower where it is longest.
        lost: tokens at the end that no tower reads, because only 75 fit.
    """

    text: str
    tokens: int
    lost: int


def token_report(plan: "Plan", model: ModelConfig) -> tuple[TokenCount, ...]:
    """Count the tokens of every text that the towers of `model` read; some 30 ms for the vocabulary."""
    tokens: dict[str, int] = {}
    for embedder in model.conditioner.embedders:
        if isinstance(embedder, SizeEmbedderConfig):
            continue
        tokenizer = Tokenizer(embedder.kind)
        for first, second in (("prompt", "prompt_2"), ("negative", "negative_2")):
            name = second if embedder.kind == "open_clip" and getattr(plan, second) is not None else first
            tokens[name] = max(tokens.get(name, 0), tokenizer.count(getattr(plan, name)))
    return tuple(TokenCount(name, count, max(0, count - MAX_TOKENS)) for name, count in tokens.items())
