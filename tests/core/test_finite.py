"""What is handed on is finite and done, and the next step has been begun by then where the device likes that."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sdxl_core.errors import NumericsError
from sdxl_core.finite import checked, one_ahead
from sdxl_core.ops.transfer import arriving, sent
from sdxl_core.plan import Plan
from sdxl_core.types import Step


def made(count: int, log: list[str], *, fails: bool = False) -> Iterator[int]:
    for i in range(count):
        log.append(f"made {i}")
        yield i
    if fails:
        raise RuntimeError("the next cannot be made")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_ahead_hands_on_the_same_items_each_when_the_next_was_made(count: int) -> None:
    log: list[str] = []
    for item in one_ahead(made(count, log)):
        log.append(f"had {item}")  # noqa: PERF401
    pairs = [line for i in range(1, count) for line in (f"made {i}", f"had {i - 1}")]
    assert log == (["made 0", *pairs, f"had {count - 1}"] if count else [])


def test_one_ahead_makes_nothing_before_it_is_asked_and_one_item_more_than_it_was_asked_for() -> None:
    log: list[str] = []
    items = one_ahead(made(5, log))
    assert log == []
    next(items)
    assert log == ["made 0", "made 1"]


def test_a_failure_comes_in_its_turn() -> None:
    items = one_ahead(made(2, [], fails=True))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="cannot be made"):
        next(items)


def plan_of(seed: int) -> Plan:
    size = (16, 16)
    return Plan(
        model="tiny",
        file="tiny.safetensors",
        prompt="a cat",
        seed=seed,
        steps=3,
        size=size,
        original_size=size,
        target_size=size,
    )


def steps_of(*latents: Tensor) -> Iterator[Step]:
    return (Step(i, 1.0, x, x, calls=1) for i, x in enumerate(latents))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_bad_latent_is_never_handed_on_and_named_by_seed_and_step(ahead: bool, bad: float, at: int) -> None:
    latents = [torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for x in latents[at:]:
        x[1, 2, 0, 1] = bad
    plans = [plan_of(seed) for seed in (5, 6, 7)]
    walk = checked(steps_of(*latents), plans, torch.float16, 3, ahead=ahead)
    assert [next(walk).index for _ in range(at)] == list(range(at))
    with pytest.raises(NumericsError, match=f"latent of seed 6 is not finite after step {at + 1} of 3") as caught:
        next(walk)
    assert "bfloat16" in (caught.value.hint or "")


@pytest.mark.parametrize("ahead", [False, True])
def test_the_largest_numbers_are_finite(ahead: bool) -> None:
    x = torch.full((1, 4, 2, 2), torch.finfo(torch.float32).max)
    assert len(list(checked(steps_of(x, -x), [plan_of(1)], torch.float32, 2, ahead=ahead))) == 2


@pytest.mark.gpu
def test_on_cuda_numbers_go_there_and_back_while_the_device_is_busy() -> None:
    device = torch.device("cuda")
    x, busy = torch.randn(3, 5), torch.randn(8192, 8192, device=device)
    sent(x, device), arriving(busy[0])  # the first use of pinned memory waits
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(30):
        busy = (busy @ busy).clamp(-1, 1)
    end.record()
    there = sent(x, device)
    back = arriving(there * 2)
    assert not end.query()  # neither has waited
    assert torch.equal(back(), x * 2)
    assert end.query()
