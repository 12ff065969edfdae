"""How flags, prompts and configuration are written and read."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_cli.cautions import lost_tail
from sdxl_cli.console import counted, safe, shorten
from sdxl_cli.options import (
    ATTENTIONS,
    DTYPES,
    PASSES,
    check_machine,
    full_dtype,
    parse_aspect,
    parse_choice,
    parse_crop,
    parse_guiders,
    parse_interval,
    parse_passes,
    parse_size,
)
from sdxl_cli.plot import braille_plot, log_ticks
from sdxl_cli.prompts import gather_prompts
from sdxl_cli.reporters import amount_text, rate_text, size_text, time_text
from sdxl_cli.toml_text import to_toml
from sdxl_core import devices, passes
from sdxl_core.conditioning.tokenizer import MAX_TOKENS, Tokenizer
from sdxl_core.errors import UsageError
from sdxl_core.ops.attention import BACKENDS


def test_sizes_are_width_by_height_outside_and_height_width_inside() -> None:
    assert parse_size("832x1216", "--size") == (1216, 832)
    assert parse_size("832X1216", "--size") == parse_size(" 832×1216 ", "--size") == (1216, 832)
    assert parse_size(None, "--size") is None
    assert parse_crop("8,16") == parse_crop("8, 16") == (8, 16)
    assert parse_aspect("16:9") == pytest.approx(16 / 9)
    assert parse_aspect("2.35:1") == pytest.approx(2.35)


@pytest.mark.parametrize(
    "text", ["", "832", "832x", "-8x8", "8.5x8", "8x8x8", "9999999x8", "٣x٣x", "٣x٣", "0x8", "8x00"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--size"):
        parse_size(text, "--size")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("euler", ("euler", {})),
        ("lms:order=3", ("lms", {"order": 3})),
        ("edm:rho=7,sigma_min=.03", ("edm", {"rho": 7.0, "sigma_min": 0.03})),
        (" heun : s_churn = 1e1 ", ("heun", {"s_churn": 10.0})),
    ],
)
def test_a_choice_carries_options(text: str, expected: tuple[str, dict[str, float]]) -> None:
    assert parse_choice(text, "--sampler") == expected


@pytest.mark.parametrize(
    "text", ["a:", "a:b", "a:b=", "a:=1", "a:b=nan", "a:b=inf", "a:b=1,", "a:b=1;c=2", "a:b=1,b=2"]
)
def test_what_is_no_option(text: str) -> None:
    with pytest.raises(UsageError, match="--sampler"):
        parse_choice(text, "--sampler")


def test_ways_of_guidance_become_keys_of_a_preset() -> None:
    assert parse_guiders(["apg", "pag:scale=2,stages=middle_block+input_blocks.8", "rescale:space=v"]) == {
        "recipe.guider.apg": {},
        "recipe.guider.pag": {"scale": 2, "stages": ["middle_block", "input_blocks.8"]},
        "recipe.guider.rescale": {"space": "v"},
    }
    with pytest.raises(UsageError, match=r"unknown guider 'perpneg'; did you mean perp_neg\?"):
        parse_guiders(["perpneg"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.28..5.42", ("sigma", 0.28, 5.42)),
        (".5..7", ("sigma", 0.5, 7.0)),
        ("0...3", ("sigma", 0.0, 0.3)),
        ("sigma: 1 .. 2", ("sigma", 1.0, 2.0)),
        ("step:3..20", ("step", 3.0, 20.0)),
        ("percent:10..80", ("percent", 10.0, 80.0)),
    ],
)
def test_an_interval_has_a_unit(text: str, expected: tuple[str, float, float]) -> None:
    assert parse_interval(text) == dict(zip(("unit", "low", "high"), expected, strict=True))
    assert parse_interval(None) is None


@pytest.mark.parametrize("text", ["", "3", "3..", "..3", "-1..3", "1-3", "1e1..2", "step:a..b", "10%..80%"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(UsageError, match="no interval"):
        parse_interval(text)


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown unit 'steps'; did you mean step\?"):
        parse_interval("steps:1..3")


def test_passes_by_name() -> None:
    assert [parse_passes(text) for text in ("auto", "none", "kept_text, fused_qkv,kept_text", "auto,fp8")] == [
        "auto",
        (),
        ("kept_text", "fused_qkv"),
        ("auto", "fp8"),
    ]
    with pytest.raises(UsageError, match=r"unknown pass 'kept_txt'; did you mean kept_text\?"):
        parse_passes("fused_qkv,kept_txt")


def test_short_names_of_dtypes() -> None:
    assert [full_dtype(name) for name in ("fp32", "fp16", "bf16", "auto")] == ["float32", "float16", "bfloat16", "auto"]


def test_the_names_that_need_no_torch_are_those_that_torch_knows() -> None:
    assert tuple(name for name in ATTENTIONS if name != "auto") == tuple(BACKENDS)
    assert tuple(PASSES) == tuple(passes.PASSES)
    assert {full_dtype(name) for name in DTYPES} == {"auto", *devices.DTYPES}
    for dtype in (*DTYPES, *devices.DTYPES, "half"):
        check_machine("cuda:1", dtype, "auto")


def test_one_is_not_many() -> None:
    assert [counted(n, "batch", "batches") for n in (0, 1, 2)] == ["0 batches", "1 batch", "2 batches"]


def test_only_line_ends_end_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes("a\x0bb\u2028c\n  #no\nd#e\r\rf\r\n".encode())
    assert gather_prompts(["x"], tmp_path / "list") == ["x", "a\x0bb\u2028c", "d#e", "f"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)
TABLES = st.recursive(
    st.dictionaries(KEYS, st.one_of(VALUES, st.lists(VALUES))),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner)),
    max_leaves=12,
)


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_toml_reads_back(table: dict[str, Any]) -> None:
    assert tomli.loads(to_toml(table)) == table


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_shown_text_cannot_drive_a_terminal(text: str) -> None:
    shown = safe(text)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or ord(c) in range(0x202A, 0x202F) for c in shown)
    assert len(shorten(text, 10)) <= 10


def test_shown_text_keeps_letters_and_emoji() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert safe(f"猫 é {family} [/b]\n\x1b[31mred\x07") == f"猫 é {family} [/b] [31mred"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["cat", "red,", "unbelievable", "猫", "🐱", "\n"]), max_size=120))
def test_the_lost_tail_is_what_does_not_fit(words: list[str]) -> None:
    text = " ".join(words)
    tail = lost_tail(text)
    assert text.rstrip().endswith(tail)
    count = Tokenizer("clip").count
    assert (tail == "") == (count(text) <= MAX_TOKENS)
    assert count(text.rstrip().removesuffix(tail)) <= MAX_TOKENS


def test_amounts_rates_and_times_read_well() -> None:
    assert amount_text(12, 30, "calls") == "12/30 calls"
    assert amount_text(1.2e9, 6.938e9, "B") == "1.20/6.94 GB"
    assert amount_text(500, None, "B") == "500 B"
    assert amount_text(3, None, "") == ""
    assert [rate_text(3.42, "calls"), rate_text(0.5, "calls"), rate_text(None, "calls")] == [
        "3.4 calls/s",
        "2.0 s/call",
        "",
    ]
    assert rate_text(2.5e7, "B") == "25.00 MB/s"
    assert [time_text(7.4), time_text(3700), time_text(None)] == ["0:07 left", "1:01:40 left", ""]
    assert [size_text(n) for n in (0, 999, 1000, 1e6, 1e9)] == ["0 B", "999 B", "1.00 kB", "1.00 MB", "1.00 GB"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.integers(20, 120), st.integers(3, 30))
def test_a_plot_has_its_size_and_a_dot_for_every_value(values: list[float], width: int, height: int) -> None:
    lines = braille_plot([values], width, height)
    assert len(lines) == height + 2
    assert max(map(len, lines)) <= width
    dots = sum(bin(ord(c) - 0x2800).count("1") for line in lines for c in line if 0x2800 <= ord(c) < 0x2900)
    assert dots >= 1


def test_a_straight_line_in_the_logarithm_is_a_straight_plot() -> None:
    drawn = braille_plot([[10.0**-i for i in range(9)]], 28, 9)[:9]
    starts = [next(i for i, c in enumerate(line[10:]) if c != chr(0x2800)) for line in drawn]
    assert starts == sorted(starts)
    assert {b - a for a, b in pairwise(starts)} <= {1, 2, 3}


def test_every_curve_of_a_plot_has_its_place_over_the_indices() -> None:
    whole = braille_plot([[8.0, 4.0, 2.0, 1.0, 0.5]], 40, 9)
    assert braille_plot([[8.0, 4.0, 2.0], [2.0, 1.0, 0.5]], 40, 9, firsts=[0, 2]) == whole
    assert braille_plot([[8.0, 4.0, 2.0, 1.0, 0.5], [8.0, 4.0]], 40, 9) == whole


def test_ticks_are_round_and_few() -> None:
    assert log_ticks(0.0292, 14.6, 12) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert log_ticks(0.0292, 14.6, 4) == pytest.approx([0.1, 1, 10])
    assert len(log_ticks(1e-9, 1e9, 5)) <= 5
