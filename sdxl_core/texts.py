"""The texts of a plan: what they say, whether they can be read, and how much of them is. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_core.conditioning.tokenizer import MAX_TOKENS, Tokenizer
from sdxl_core.config import ModelConfig, SizeEmbedderConfig
from sdxl_core.errors import UsageError

if TYPE_CHECKING:
    from sdxl_core.plan import Plan

_AND = re.compile(r"(?<!\\)\bAND\b")
_WEIGHT = re.compile(r"(.*?)\s*:\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One of the prompts that AND joins.

    Args:
        text: what it says.
        weight: how far it counts; below 0, to be kept away from.
    """

    text: str
    weight: float = 1.0


def split_prompt(text: str) -> tuple[Part, ...]:
    r"""`a cat AND a hat :0.8` as its parts; a text without AND is one part, just as it is.

    AND in capitals joins, `\AND` is the word. A weight stands after a colon at the end of a part.

    Raises:
        UsageError: a part says nothing, or none has a weight above 0.
    """
    pieces = _AND.split(text)
    if len(pieces) == 1:
        return (Part(_unescaped(text)),)
    parts = tuple(_part(piece) for piece in pieces)
    for number, part in enumerate(parts, 1):
        if not part.text:
            raise UsageError(
                f"the prompt says nothing in part {number}",
                hint="AND in capitals joins prompts; write \\AND for the word",
            )
    if not any(part.weight > 0 for part in parts):
        raise UsageError("the prompt has no part with a weight above 0")
    return parts


def paired_prompts(prompt: str, prompt_2: str | None) -> tuple[tuple[str, str | None, float], ...]:
    """Each part of a prompt with the same part of the second text tower's prompt, if it has one, and its weight.

    Raises:
        UsageError: the two have different numbers of parts.
    """
    first = split_prompt(prompt)
    second = [None] * len(first) if prompt_2 is None else [part.text for part in split_prompt(prompt_2)]
    if len(first) != len(second):
        raise UsageError(
            f"the prompt has {len(first)} of the parts that AND joins, and {len(second)} for the second text encoder"
        )
    return tuple((part.text, other, part.weight) for part, other in zip(first, second, strict=True))


def _part(piece: str) -> Part:
    match = _WEIGHT.fullmatch(piece)
    text, weight = (piece, 1.0) if match is None else (match[1], float(match[2]))
    return Part(_unescaped(text.strip()), weight)


def _unescaped(text: str) -> str:
    return text.replace("\\AND", "AND")


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
        words: the text itself; where AND joins several, the longest.
        tokens: of the words, in the text tower where they are most.
        lost: tokens at the end that no tower reads, because only 75 fit.
    """

    text: str
    words: str
    tokens: int
    lost: int


def token_report(plan: "Plan", model: ModelConfig) -> tuple[TokenCount, ...]:
    """Count the tokens of every text that the towers of `model` read; some 30 ms for the vocabulary."""
    longest: dict[str, tuple[int, str]] = {}
    for embedder in model.conditioner.embedders:
        if isinstance(embedder, SizeEmbedderConfig):
            continue
        tokenizer = Tokenizer(embedder.kind)
        for first, second in (("prompt", "prompt_2"), ("negative", "negative_2")):
            name = second if embedder.kind == "open_clip" and getattr(plan, second) is not None else first
            said = getattr(plan, name)
            for words in [part.text for part in split_prompt(said)] if first == "prompt" else [said]:
                longest[name] = max(longest.get(name, (0, "")), (tokenizer.count(words), words))
    return tuple(TokenCount(name, words, count, max(0, count - MAX_TOKENS)) for name, (count, words) in longest.items())
