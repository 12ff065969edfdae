"""Prompts in parts, and how many of their words are read."""

import pytest
from support_plans import plan_of
from support_tiny import tiny_config

from sdxl_core.errors import UsageError
from sdxl_core.texts import split_prompt, token_report
from sdxl_core.work import network_rows


def test_and_joins_prompts_with_weights() -> None:
    plan = plan_of("a cat AND a hat :0.8 AND\nblurry: -1", recipe_guider__pag={})
    assert [(request.prompt, weight) for request, weight in plan.requests()] == [
        ("a cat", 1.0),
        ("a hat", 0.8),
        ("blurry", -1.0),
    ]
    assert network_rows(plan) == 30 * (3 + 1 + 3)
    assert not plan.shares_batch(plan_of("a cat AND a hat", recipe_guider__pag={}))
    assert plan.shares_batch(plan_of("a AND b AND c", recipe_guider__pag={}))


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a cat :1.2", ["a cat :1.2"]),  # a weight of the only prompt would say nothing
        ("SAND and hAND", ["SAND and hAND"]),
        (r"SALT \AND PEPPER", ["SALT AND PEPPER"]),
        (r"SALT \AND PEPPER AND a jar:.5", ["SALT AND PEPPER", "a jar"]),
        ("at 10:30 sharp AND (b:1.3)", ["at 10:30 sharp", "(b:1.3)"]),
    ],
)
def test_only_the_word_in_capitals_joins(prompt: str, read: list[str]) -> None:
    assert [part.text for part in split_prompt(prompt)] == read


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"prompt": "a cat AND "}, "the prompt says nothing in part 2"),
        ({"prompt": "AND a cat"}, "the prompt says nothing in part 1"),
        ({"prompt": "a cat AND :2 AND b"}, "the prompt says nothing in part 2"),
        ({"prompt": "a :0 AND b :-1"}, "the prompt has no part with a weight above 0"),
        ({"prompt": "a AND b", "prompt_2": "c"}, "the prompt has 2 of the parts that AND joins, and 1 for the second"),
    ],
)
def test_prompts_that_cannot_be_joined(prompts: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(**prompts)


def test_a_second_prompt_has_its_parts_too() -> None:
    plan = plan_of("a AND b :2", prompt_2="c :9 AND d")
    assert [(r.prompt, r.prompt_2, weight) for r, weight in plan.requests()] == [("a", "c", 1.0), ("b", "d", 2.0)]


def test_every_part_of_a_prompt_has_room_of_its_own() -> None:
    plan = plan_of(f"{'cat ' * 60} AND {'dog ' * 80}")
    assert [(c.tokens, c.lost) for c in token_report(plan, tiny_config()) if c.text == "prompt"] == [(80, 5)]


def test_the_token_report_counts_what_is_lost_in_every_text() -> None:
    plan = plan_of("cat " * 75, prompt_2="dog " * 80, recipe_negative="blurry")
    report = {count.text: (count.tokens, count.lost) for count in token_report(plan, tiny_config())}
    assert report == {"prompt": (75, 0), "prompt_2": (80, 5), "negative": (1, 0)}


def test_the_refiner_reads_one_prompt_with_one_tower() -> None:
    refiner = tiny_config("refiner")
    both = token_report(plan_of("cat " * 76, prompt_2="a dog"), refiner)
    assert [(count.text, count.lost) for count in both] == [("prompt_2", 0), ("negative", 0)]
