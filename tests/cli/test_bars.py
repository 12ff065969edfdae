"""What a person at a real terminal sees: bars that move and reach their end, and Ctrl-C that tidies up."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support_files import room_for

from sdxl_cli.boundary import run
from sdxl_core.diffusion.schedules import SCHEDULES

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


def at_terminal(argv: list[str], folder: Path, react: Callable[[str], bytes]) -> tuple[int, str]:
    """Run the program on a pseudo-terminal of 100 columns; `react` sees all output so far and may answer with keys."""
    primary, secondary = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "LINES": "30", "TERM": "xterm-256color"}
    child = subprocess.Popen(
        [sys.executable, "-m", "sdxl_cli", *argv],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        cwd=folder,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(secondary, termios.TIOCSCTTY, 0),
    )
    os.close(secondary)
    seen, deadline = "", time.monotonic() + TIMEOUT_S
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end amid a character
    try:
        while time.monotonic() < deadline:
            if select.select([primary], [], [], 0.1)[0]:
                try:
                    chunk = os.read(primary, 65536)
                except OSError:  # the terminal's other end is closed
                    break
                if not chunk:
                    break
                seen += decoder.decode(chunk)
                os.write(primary, react(seen))
        return child.wait(20), seen
    finally:
        child.kill()
        child.wait()
        os.close(primary)


@pytest.fixture
def here_at_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run the program in this process, which has torch already, with its standard error on a pseudo-terminal."""

    def call(*argv: object) -> tuple[int, str]:
        primary, secondary = pty.openpty()
        chunks: list[bytes] = []

        def read() -> None:
            with contextlib.suppress(OSError):  # the terminal's other end is closed
                while chunk := os.read(primary, 65536):
                    chunks.append(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "xterm-256color")
        with open(secondary, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            code = run([str(argument) for argument in argv])
        reader.join()
        os.close(primary)
        return code, b"".join(chunks).decode()

    return call


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_bars_run_to_the_end_and_leave_the_lines(tmp_path: Path, tiny_folder: Path) -> None:
    code, seen = at_terminal(
        ["gen", "a cat [red]", "--seed", "7", "-n", "2", "--steps", "8", "--preset", f"{tiny_folder}/tiny-base.toml"],
        tmp_path,
        lambda _: b"",
    )
    assert code == 0
    text = plain(seen)
    for word in ("starting PyTorch", "all 2 pictures", "1 a cat [red]", "8/8 calls", "16/16 calls", "100 %", "calls/s"):
        assert word in text
    assert "\x1b[?25l" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    # What stays on the screen when the bars are gone.
    last = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n") if "outputs/" in line]
    assert last == ["outputs/00001-7-a-cat-red.png", "outputs/00002-8-a-cat-red.png"]
    assert max(len(line) for line in re.split(r"[\r\n]", text)) < 100


def test_the_bar_of_a_sampler_that_finds_its_steps_on_the_way_ends_full(tmp_path: Path, tiny_folder: Path) -> None:
    sampler = ["--sampler", "dpm_adaptive:order=2,rtol=0.2"]
    code, seen = at_terminal(
        ["gen", "a cat", "--seed", "7", *sampler, "--preset", f"{tiny_folder}/tiny-base.toml"], tmp_path, lambda _: b""
    )
    assert code == 0
    made = re.search(r"(\d+) model calls", plain(seen))
    assert made is not None
    assert f"{made[1]}/{made[1]} calls" in plain(seen)
    assert "100 %" in plain(seen)


@pytest.mark.parametrize(
    ("mode", "calls"),
    [("share@0.8", 10), ("share@step=4", 10), ("share@sigma=0.4", 10), ("steps@8/10", 10), ("sdedit@0.3", 13)],
)
def test_one_bar_counts_the_calls_of_both_models_up_to_the_last(
    here_at_terminal: Callable[..., tuple[int, str]], tiny_folder: Path, mode: str, calls: int
) -> None:
    presets = ["--preset", tiny_folder / "tiny-base.toml", "--refiner-preset", tiny_folder / "tiny-refiner.toml"]
    presets += ["--device", "cpu", "--dtype", "fp32"]
    code, seen = here_at_terminal("gen", "a cat", "--seed", "7", "--steps", "10", "--refine", mode, *presets)
    assert code == 0
    shown = re.findall(r"(\d+) %\s+(\d+)/(\d+) calls", plain(seen))
    counts = [(int(percent), int(done), int(total)) for percent, done, total in shown]
    assert counts == sorted(counts)
    assert {total for *_, total in counts} == {calls}
    assert counts[-1] == (100, calls, calls)
    assert "decoding a cat" in plain(seen)
    assert f"1/1 seed 7, {calls} model calls" in plain(seen)


def test_no_bar_is_in_the_way_of_an_error(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, here_at_terminal: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    with room_for(8192):
        code, seen = here_at_terminal(
            *("gen", "a cat", "-n", 4, "--batch-size", 4, "--preset", tiny_folder / "tiny-base.toml", "--device", "cpu")
        )
    assert code == 1
    errors = [match.start() for match in re.finditer("error:", seen)]
    assert len(errors) == 4
    for place in errors:
        assert seen.rindex("\x1b[?25h", 0, place) > seen.rindex("\x1b[?25l", 0, place)  # bars hide the cursor


def test_ctrl_c_at_the_terminal(tmp_path: Path, tiny_folder: Path) -> None:
    pressed: list[float] = []

    def press(seen: str) -> bytes:
        if not pressed and "outputs/00001" in seen:
            pressed.append(time.monotonic())
            return b"\x03"
        return b""

    code, seen = at_terminal(
        ["gen", "a cat", "--seed", "7", "-n", "500", "--preset", f"{tiny_folder}/tiny-base.toml"], tmp_path, press
    )
    assert code == 130
    assert re.search(r"error: interrupted: \d+ of 500 pictures are done", plain(seen))
    assert "Traceback" not in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert all(path.suffix == ".png" for path in (tmp_path / "outputs").iterdir())


def test_colours_only_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, seen = at_terminal(["presets", "show", "nothing"], tmp_path, lambda _: b"")
    assert "\x1b[1;31merror:\x1b[0m" in seen
    monkeypatch.setenv("NO_COLOR", "1")
    _, seen = at_terminal(["presets", "show", "nothing"], tmp_path, lambda _: b"")
    assert seen.startswith("error:")


def test_schedules_are_drawn_in_colours_of_their_own(tmp_path: Path) -> None:
    code, seen = at_terminal(["sigmas", "--compare", "karras,beta", "--steps", "9"], tmp_path, lambda _: b"")
    assert code == 0
    for colour in (34, 33):
        assert re.search(rf"\x1b\[{colour}m[\u2801-\u28ff]\x1b\[0m", seen)
    assert max(len(line) for line in plain(seen).splitlines()) <= 100
    assert plain(seen).splitlines()[-2:] == ["          ━━ karras", "          ━━ beta"]


def test_the_list_of_schedules_keeps_to_one_line_each(tmp_path: Path) -> None:
    code, seen = at_terminal(["sigmas", "list"], tmp_path, lambda _: b"")
    lines = plain(seen).splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == list(SCHEDULES)
    assert max(map(len, lines)) <= 100
