"""Errors, signals and closed pipes: an exit code and plain words, never a traceback."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support_cli import Sdxl

from sdxl_cli.boundary import run
from sdxl_cli.console import plain_warnings
from sdxl_core.engine import Engine
from sdxl_core.errors import UsageError
from sdxl_core.models.graphs import Graphed, Recording
from sdxl_core.passes import PASSES

ROOT = Path(__file__).parents[2]


def shell(line: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `sdxl` is the program."""
    program = f'sdxl() {{ "{sys.executable}" -m sdxl_cli "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", program + line],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_bug_is_said_to_be_one(sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdxl_core.presets.list_presets", lambda: 1 // 0)
    result = sdxl("presets", "list")
    assert result.code == 101
    assert result.err.startswith("error: internal error: ZeroDivisionError")
    assert "SDXL_DEBUG=1" in result.err
    assert "Traceback" not in result.err
    for shown in (sdxl("presets", "list", "--debug"), sdxl("--debug", "presets", "list")):
        assert shown.code == 101
        assert "Traceback" in shown.err
    monkeypatch.setenv("SDXL_DEBUG", "1")
    assert "Traceback" in sdxl("presets", "list").err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_running_out_of_memory_has_its_code(sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def exhaust() -> None:
        raise error

    monkeypatch.setattr("sdxl_core.presets.list_presets", exhaust)
    result = sdxl("presets", "list")
    assert result.code == 5
    assert result.err.startswith("error: out of memory")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_with_its_code(
    sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, word: str
) -> None:
    def wait() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("sdxl_core.presets.list_presets", wait)
    before = signal.getsignal(number)
    result = sdxl("presets", "list")
    assert (result.code, result.err) == (code, f"error: {word}\n")
    assert signal.getsignal(number) is before


def test_ctrl_c_while_the_program_itself_is_imported_says_nothing() -> None:
    code = """
import os, runpy, signal, sys

class Impatient:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Impatient())
runpy.run_module("sdxl_cli", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_signal_in_a_finaliser_is_not_lost(sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)  # for the handler

    def wait() -> None:
        Finalised()
        time.sleep(5)

    monkeypatch.setattr("sdxl_core.presets.list_presets", wait)
    result = sdxl("presets", "list")
    assert (result.code, result.err) == (130, "error: interrupted\n")


def test_a_second_ctrl_c_does_not_wait() -> None:
    stubborn = """
import os, signal, sys, time
import sdxl_core.presets
def stubborn():
    try:
        print("ready", file=sys.stderr, flush=True)
        time.sleep(30)
    finally:
        print("cleaning", file=sys.stderr, flush=True)
        time.sleep(30)
sdxl_core.presets.list_presets = stubborn
from sdxl_cli.boundary import run
run(["presets", "list"])
"""
    child = subprocess.Popen(
        [sys.executable, "-c", stubborn], stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stderr is not None
    with child.stderr:
        for word in ("ready", "cleaning"):
            assert child.stderr.readline().strip() == word
            child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    done = shell("sdxl sigmas --steps 1000 --csv | head -1", tmp_path)
    assert done.stdout == "index,sigma,timestep,alpha_bar,log_snr,log_snr_step,snr_db\n"
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_full_standard_output_is_an_error(tmp_path: Path) -> None:
    done = shell("sdxl sigmas --csv > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


def test_signals_are_left_alone_outside_the_main_thread(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("message", "category", "said"),
    [
        ("no room", UserWarning, ["no room"]),
        ("divide by zero", RuntimeWarning, ["divide by zero"]),
        (
            "CUDA:\n  no driver (Triggered internally at /build/CUDAFunctions.cpp:119.)",
            UserWarning,
            ["CUDA: no driver"],
        ),
        ("torch.old is gone soon", FutureWarning, []),
        ("use another", DeprecationWarning, []),
    ],
)
def test_warnings_of_code_are_one_line_or_for_developers(
    monkeypatch: pytest.MonkeyPatch, message: str, category: type[Warning], said: list[str]
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(), plain_warnings(heard.append):
        warnings.simplefilter("always")
        warnings.warn(message, category, stacklevel=1)
    assert heard == said


def test_who_asks_python_for_warnings_gets_them_as_they_are() -> None:
    code = "from sdxl_cli.console import plain_warnings\nimport warnings\n"
    code += "with plain_warnings(print): warnings.warn('no room', stacklevel=1)"
    for asked, out in ([], "no room\n"), (["-W", "default"], ""):
        done = subprocess.run([sys.executable, *asked, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == out
        assert ("UserWarning" in done.stderr) == (not out)


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_leaves_out_what_is_warned_of_before_a_model_is_loaded(
    sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    def warn_first(*_: object) -> None:
        warnings.warn("the disk is slow", UserWarning, stacklevel=1)
        raise UsageError("no")

    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr("sdxl_cli.jobs.check_machine", warn_first)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = sdxl("gen", "a cat", *(["-q"] if quiet else []))
    assert result.err == ("" if quiet else "warning: the disk is slow\n") + "error: no\n"


@pytest.fixture
def _no_room_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes recordings, and has no memory for one."""

    def refuse(run: object, beside: object) -> Recording:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total ...")
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture\n...")

    def record(engine: Engine) -> Engine:
        return replace(engine, network=Graphed(engine.network, refuse))

    entry = replace(PASSES["cuda_graph"], run=record, why_not=lambda place: None)
    monkeypatch.setattr("sdxl_core.passes.PASSES", {**PASSES, "cuda_graph": entry})
    monkeypatch.setattr(sys, "warnoptions", [])


@pytest.mark.filterwarnings("always:no CUDA graph:UserWarning")
@pytest.mark.usefixtures("_no_room_for_graphs")
def test_what_the_core_warns_of_while_it_draws_is_a_line_like_all_others(gen: Sdxl) -> None:
    told = gen("a cat", "--seed", 7)
    assert told.code == 0
    caution = "warning: no CUDA graph for (2, 4, 8, 8), which is slower: out of memory"
    assert [line for line in told.err.splitlines() if "graph" in line] == [caution]
    quiet = gen("a cat", "--seed", 7, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
