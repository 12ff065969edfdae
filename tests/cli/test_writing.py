"""Work beside the drawing: its order, its bound, its failures, and what a signal leaves."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from sdxl_cli.boundary import Stopped, _stop
from sdxl_cli.writing import AHEAD, Background
from sdxl_core.errors import OutputError, SdxlError


def _never(error: SdxlError) -> None:
    raise AssertionError(error)


def test_results_come_in_order_from_the_caller_s_thread_and_all_before_the_end() -> None:
    told: list[tuple[int, bool]] = []
    threads: set[int] = set()

    def work(number: int) -> int:
        threads.add(threading.get_ident())
        return number

    here = threading.get_ident()
    with Background[int](lambda number: told.append((number, threading.get_ident() == here)), _never) as writer:
        for number in range(7):
            writer.submit(lambda number=number: work(number))  # type: ignore[misc]
    assert told == [(number, True) for number in range(7)]
    assert len(threads) == 1
    assert here not in threads


def test_the_caller_goes_on_until_enough_is_waiting() -> None:
    told: list[int] = []
    gate = threading.Event()

    def held(number: int) -> Callable[[], int]:
        return lambda: number if gate.wait(20) else -1

    with Background[int](told.append, _never) as writer:
        for number in range(AHEAD):
            writer.submit(held(number))
        writer.collect()
        assert told == []  # nothing is done, and nobody has waited
        opener = threading.Timer(0.05, gate.set)
        opener.start()
        writer.submit(held(AHEAD))
        assert told[:1] == [0]  # one too many: the first had to be done
        opener.join()
    assert told == list(range(AHEAD + 1))


def test_a_failure_is_raised_once_all_else_is_told_and_another_one_is_said() -> None:
    told: list[str] = []
    said: list[SdxlError] = []
    gate = threading.Event()

    def fail(what: str) -> str:
        gate.wait(20)
        raise OutputError(f"the disk is {what}", hint="make room")

    def run() -> None:
        with Background[str](told.append, said.append) as writer:
            writer.submit(lambda: "before")
            writer.submit(lambda: fail("full"))
            gate.set()
            writer.submit(lambda: fail("still full"))
            writer.submit(lambda: "after")

    with pytest.raises(OutputError, match="the disk is full"):
        run()
    assert told == ["before", "after"]
    assert [(error.message, error.hint) for error in said] == [("the disk is still full", "make room")]


def test_another_error_ends_the_run_and_what_is_made_is_told() -> None:
    told: list[str] = []

    def run() -> None:
        with Background[str](told.append, _never) as writer:
            writer.submit(lambda: "made")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert told == ["made"]


def test_a_signal_loses_nothing_that_is_made_and_says_what_could_not_be_written() -> None:
    told: list[str] = []
    said: list[SdxlError] = []
    gate = threading.Event()

    def fail() -> str:
        raise OutputError("the disk is full")

    def run() -> None:
        with Background[str](told.append, said.append) as writer:
            writer.submit(lambda: "made" if gate.wait(20) else "")
            writer.submit(fail)
            threading.Timer(0.05, gate.set).start()
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(20)

    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Stopped):
            run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert told == ["made"]
    assert [error.message for error in said] == ["the disk is full"]
