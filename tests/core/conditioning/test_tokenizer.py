import gzip
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support_conditioning import PROMPTS, any_prompt

from sdxl_core.conditioning.tokenizer import END, START, Rules, Tokenizer, vocabulary_path

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def reference() -> Any:
    """transformers' CLIPTokenizer over the same vocabulary file, read here independently of ours."""
    from transformers import CLIPTokenizer

    lines = gzip.decompress(vocabulary_path().read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_clip_rules_are_those_of_transformers(reference: Any, prompt: str) -> None:
    assert Tokenizer("clip").encode(prompt) == reference(prompt, add_special_tokens=False)["input_ids"]


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(any_prompt)
def test_the_clip_rules_are_those_of_transformers_for_any_prompt(reference: Any, prompt: str) -> None:
    assert Tokenizer("clip").encode(prompt) == reference(prompt, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_padded_ids_are_those_of_transformers(reference: Any, prompt: str) -> None:
    theirs = reference(prompt, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert Tokenizer("clip").padded(prompt) == theirs


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.sampled_from([c for c in map(chr, range(32, 127)) if c not in "&<"]), max_size=200))
@example("It's 8 o'clock; DON'T")
def test_both_rules_agree_on_plain_text(prompt: str) -> None:
    assert Tokenizer("clip").encode(prompt) == Tokenizer("open_clip").encode(prompt)


@pytest.mark.parametrize(
    ("prompt", "clip_reads", "open_clip_reads"),
    [
        ("a &amp; b", "a & amp ; b", "a & b"),  # entities
        ("schÃ¶n", "schã ¶ n", "schön"),  # broken encodings
        ("“cat”", "“ cat ”", '" cat "'),  # curly quotes
    ],
)
def test_where_the_rules_differ(prompt: str, clip_reads: str, open_clip_reads: str) -> None:
    def ids(rules: Rules, words: str) -> list[int]:
        return [i for word in words.split(" ") for i in Tokenizer(rules).encode(word)]

    assert Tokenizer("clip").encode(prompt) == ids("clip", clip_reads)
    assert Tokenizer("open_clip").encode(prompt) == ids("open_clip", open_clip_reads)
    assert ids("clip", clip_reads) != ids("clip", open_clip_reads)


@pytest.mark.parametrize(("rules", "pad"), [("clip", END), ("open_clip", 0)])
def test_padding(rules: Rules, pad: int) -> None:
    assert Tokenizer(rules).padded("a cat") == [START, 320, 2368, END] + [pad] * 73


@pytest.mark.parametrize(("words", "read"), [(0, 0), (74, 74), (75, 75), (76, 75), (200, 75)])
def test_padding_reads_75_tokens_and_no_more(words: int, read: int) -> None:
    tokenizer, prompt = Tokenizer(), "cat " * words
    assert tokenizer.count(prompt) == words
    padded = tokenizer.padded(prompt)
    assert len(padded) == 77
    assert padded.count(2368) == read
    assert padded[min(words, 75) + 1] == END


def test_an_endless_word_takes_no_quadratic_time(reference: Any) -> None:
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=50_000))
    start = time.perf_counter()
    ids = Tokenizer().encode(word)
    assert time.perf_counter() - start < 5  # 0.1 s alone on a core; joining one pair a pass takes minutes
    assert ids == reference(word, add_special_tokens=False)["input_ids"]


def test_a_lone_surrogate_is_read_as_a_question_mark() -> None:
    assert Tokenizer("clip").encode("a \udcff cat") == Tokenizer("clip").encode("a ? cat")


def run(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_plain_prompt_waits_for_no_unicode_library() -> None:
    code = (
        "import sys; from sdxl_core.conditioning.tokenizer import Tokenizer as T;"
        "T('clip').encode('a cat'); T('open_clip').encode('a cat');"
        "print({'torch', 'open_clip', 'regex', 'ftfy'} & set(sys.modules))"
    )
    assert run(code) == "set()"


def test_a_missing_vocabulary_is_said_with_what_to_do() -> None:
    code = (
        "from sdxl_core.conditioning.tokenizer import Tokenizer as T\n"
        "from sdxl_core.errors import SdxlError\n"
        "try: T()\n"
        "except SdxlError as e: print(e.message, '/', e.hint)"
    )
    said = run(code, "-S")  # without site-packages there is no open_clip
    assert "was not found in the open_clip package" in said
    assert said.endswith("/ install it: pip install open_clip_torch")
