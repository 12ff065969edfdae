"""CLIP's byte-pair tokenizer, as the two text towers of SDXL use it. Imports no torch.

Both towers share one vocabulary of 49408 tokens; they differ in how a prompt is cleaned before it is split, in the
spelling of the special tokens, and in the padding:

- `clip` (ViT-L) does what transformers' CLIPTokenizer does: Unicode NFC, whitespace, lower case letter by letter.
  Older, slow versions of that class also ran ftfy where it was installed; this one never does.
- `open_clip` (ViT-bigG) does what open_clip's SimpleTokenizer does: ftfy, HTML entities twice, whitespace, lower case.

On plain ASCII without `&` and `<` both give the same tokens. Letters that Python's own Unicode tables do
not know yet may be split otherwise than by a reference built with newer ones.

Source: Radford et al. 2021, section 2.4; the vocabulary lies in the open_clip package.
"""

import gzip
import heapq
import html
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sdxl_core.errors import SdxlError

START = 49406
END = 49407
VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77
MAX_TOKENS = CONTEXT_LENGTH - 2  # what is left for the prompt between the start and the end token

Rules = Literal["clip", "open_clip"]

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2
_WORD_END = "</w>"
_PLAIN = re.compile(r"[ -%'-;=-~\t\n\r]*")  # printable ASCII without "&" and "<": cleaning leaves it as it is
_PLAIN_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_SPECIALS: Mapping[Rules, Mapping[str, int]] = {
    "clip": {"<|startoftext|>": START, "<|endoftext|>": END},
    "open_clip": {"<start_of_text>": START, "<end_of_text>": END},
}


def vocabulary_path() -> Path:
    """Where the vocabulary lies, found without importing open_clip (which would import torch).

    Raises:
        SdxlError: open_clip is not installed, or came without its vocabulary.
    """
    spec = find_spec("open_clip")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _VOCABULARY_FILE
        if path.is_file():
            return path
    raise SdxlError(
        f"the tokenizer's vocabulary {_VOCABULARY_FILE} was not found in the open_clip package",
        hint="install it: pip install open_clip_torch",
    )


@lru_cache(maxsize=1)
def _merge_ids() -> Mapping[str, int]:
    """The id of the token that joining the pair `"left right"` gives; a smaller id is joined earlier."""
    text = gzip.decompress(vocabulary_path().read_bytes()).decode("utf-8")
    # A heading comes first; the file goes on after the pairs that CLIP uses.
    pairs = text.split("\n", _MERGES + 1)[1:-1]
    return dict(zip(pairs, range(512, 512 + _MERGES), strict=True))


@lru_cache(maxsize=1)
def _byte_symbols() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """For each byte, the printable letter that stands for it in the vocabulary, and that letter's id."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [b for b in range(256) if b not in printable]
    symbols = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(other)}
    ids = {b: i for i, b in enumerate(printable + other)}
    return tuple(symbols[b] for b in range(256)), tuple(ids[b] for b in range(256))


@lru_cache(maxsize=4096)
def _join_pairs(word: bytes) -> tuple[int, ...]:
    """Token ids of one word: the pair with the smallest id is joined first, from left to right.

    A heap over a linked list keeps this n log n, so that a prompt of one endless word cannot hang the program.
    """
    merges = _merge_ids()
    symbols, symbol_ids = _byte_symbols()
    parts: list[str | None] = [symbols[b] for b in word]
    ids = [symbol_ids[b] for b in word]
    parts[-1] = f"{parts[-1]}{_WORD_END}"
    ids[-1] += 256
    following = list(range(1, len(word) + 1))
    previous = list(range(-1, len(word) - 1))
    heap: list[tuple[int, int, str]] = []

    def offer(left: int) -> None:
        if left >= 0 and following[left] < len(word):
            pair = f"{parts[left]} {parts[following[left]]}"
            if (joined := merges.get(pair)) is not None:
                heapq.heappush(heap, (joined, left, pair))

    for position in range(len(word)):
        offer(position)
    while heap:
        joined, left, pair = heapq.heappop(heap)
        right = following[left]
        if right >= len(word) or pair != f"{parts[left]} {parts[right]}":
            continue  # one of the two has been joined with another neighbour since
        parts[left], parts[right] = f"{parts[left]}{parts[right]}", None
        ids[left] = joined
        following[left] = following[right]
        if following[left] < len(word):
            previous[following[left]] = left
        offer(previous[left])
        offer(left)
    return tuple(i for i, part in zip(ids, parts, strict=True) if part is not None)


@lru_cache(maxsize=2)
def _words_in(rules: Rules) -> Callable[[str], list[str]]:
    import regex  # 15 ms that a plain prompt need not wait for; the standard library knows no letters beyond ASCII

    specials = "|".join(re.escape(special) for special in _SPECIALS[rules])
    flags = regex.IGNORECASE if rules == "open_clip" else 0
    find: Callable[[str], list[str]] = regex.compile(f"{specials}|{_WORDS}", flags).findall
    return find


def _split_open_clip(text: str) -> list[str]:
    import ftfy  # 35 ms that a plain prompt need not wait for

    clean = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _words_in("open_clip")(" ".join(clean.split()).lower())


def _split_clip(text: str) -> Iterator[str]:
    for part in re.split(r"(<\|startoftext\|>|<\|endoftext\|>)", text):
        if part in _SPECIALS["clip"]:
            yield part
        else:
            # Letter by letter as the reference does, so that a final sigma is not treated apart.
            lower = "".join(map(str.lower, unicodedata.normalize("NFC", part)))
            for word in _words_in("clip")(lower):
                # A special token written in capitals is not special, yet the reference cuts it off what follows.
                yield from ("<|", word[2:-2], "|>") if word in _SPECIALS["clip"] else (word,)


class Tokenizer:
    """Prompt to token ids; about 30 ms once for the vocabulary, then microseconds a word.

    Args:
        rules: whose cleaning to follow: `clip` for ViT-L, `open_clip` for ViT-bigG.

    Raises:
        SdxlError: the vocabulary is not installed.
    """

    def __init__(self, rules: Rules = "clip") -> None:
        self.rules: Rules = rules
        self.pad_token = END if rules == "clip" else 0
        _merge_ids()

    def encode(self, text: str) -> list[int]:
        """Token ids of the whole prompt, of any length, without the start and the end token."""
        return [i for word in self._split(text) for i in self._ids_of(word)]

    def count(self, text: str) -> int:
        """Tokens of the prompt, without the start and the end token."""
        return len(self.encode(text))

    def padded(self, text: str) -> list[int]:
        """Exactly 77 ids: start, at most 75 tokens, end, padding (the end token for ViT-L, 0 for ViT-bigG).

        Whoever calls it with a longer prompt tells the user.
        """
        ids = [START, *self.encode(text)[:MAX_TOKENS], END]
        return ids + [self.pad_token] * (CONTEXT_LENGTH - len(ids))

    def _ids_of(self, word: str) -> tuple[int, ...]:
        special = _SPECIALS[self.rules].get(word)
        # A lone surrogate (an undecodable byte of a command line) has no UTF-8 form; it becomes a question mark.
        return (special,) if special is not None else _join_pairs(word.encode("utf-8", errors="replace"))

    def _split(self, text: str) -> Iterator[str]:
        if _PLAIN.fullmatch(text):
            yield from _PLAIN_WORDS.findall(text.lower())
        elif self.rules == "clip":
            yield from _split_clip(text)
        else:
            yield from _split_open_clip(text)
