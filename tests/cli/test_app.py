"""The program as a whole: help, version, start-up, completion, and the page made from it."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from support_cli import Sdxl

import sdxl_core
from sdxl_cli.boundary import EXIT_CODES

ROOT = Path(__file__).parents[2]
COMMANDS = ("gen", "inspect", "sigmas", "presets", "pull", "train")


def test_help_names_every_command_exit_code_and_variable(sdxl: Sdxl) -> None:
    page = sdxl("--help")
    assert page.code == 0
    for word in (*COMMANDS, "SDXL_MODELS", "SDXL_EXTRA_MODELS", "SDXL_DEBUG"):
        assert word in page.out
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"\b{code}\s+{re.escape(meaning)}", page.out)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [*COMMANDS, "presets show"])
def test_help_pages_fit_and_end_with_examples(
    sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    page = sdxl(*command.split(), "--help")
    assert page.code == 0
    assert max(map(len, page.out.splitlines())) <= columns
    assert "…" not in page.out
    if command != "presets":
        assert f"sdxl {command} " in page.out.partition("Examples")[2]


def test_the_page_in_docs_is_the_programs_own() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_cli_md.py"))["document"]()
    assert made == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_version_is_one(sdxl: Sdxl) -> None:
    result = sdxl("--version")
    assert (result.code, result.out) == (0, f"sdxl {sdxl_core.__version__}\n")


def test_nothing_asked_shows_the_help(sdxl: Sdxl) -> None:
    result = sdxl()
    assert result.code == 2
    assert "Commands" in result.out + result.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["gne"], "no such command 'gne'\nhint: did you mean 'gen'?"),
        (["gen", "a cat", "--stepz", "3"], "did you mean --steps"),
        (["gen", "a cat", "--steps", "many"], "'--steps': expected a whole number"),
        (["gen", "a cat", "--format", "gif"], "'--format': 'gif' is not one of 'png', 'jpg', 'webp'"),
        (["presets", "show"], "missing argument"),
        (["train", "micro", "--data", "x", "--out", "y", "--steps", "0"], "error: --steps must be at least 1, got 0\n"),
    ],
)
def test_misuse_is_one_error_and_one_hint(sdxl: Sdxl, argv: list[str], said: str) -> None:
    result = sdxl(*argv)
    assert result.code == 2
    assert result.out == ""
    assert said.lower() in result.err.lower()
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["error", "hint"]


LIGHT = """
import resource, sys
from sdxl_cli.boundary import run
for argv in {lines!r}:
    assert run(argv) == 0
    heavy = ("torch", "transformers", "open_clip", "huggingface_hub", "scipy", "pydantic", "numpy", "PIL")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(argv[0], [m for m in heavy if m in sys.modules], f"{{used.ru_utime + used.ru_stime:.3f}}", file=sys.stderr)
"""


def test_what_must_be_instant_starts_without_what_it_does_not_use(tmp_path: Path, tiny_folder: Path) -> None:
    picture = PngImagePlugin.PngInfo()
    picture.add_text("sdxl", '{"format": 1, "plan": {"prompt": "a cat"}}')
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png", pnginfo=picture)
    loaded = {
        ("--help",): [],
        ("samplers", "list"): ["pydantic"],
        ("presets", "list"): ["pydantic"],
        ("presets", "show", "sdxl-base-1.0"): ["pydantic"],
        ("inspect", str(tiny_folder / "tiny_base.safetensors")): ["pydantic"],
        ("inspect", str(tmp_path / "cat.png")): ["pydantic"],
        ("sigmas", "--json"): ["pydantic", "numpy"],
        ("gen", "a cat", "--preset", "sdxl-base-1.0", "--dry-run", "-q"): ["pydantic", "numpy", "PIL"],
    }
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(lines=[list(line) for line in loaded])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    reports = done.stderr.splitlines()
    assert [report.rpartition(" ")[0] for report in reports] == [f"{line[0]} {some}" for line, some in loaded.items()]
    # The promise for --help is 0.3 s on the clock of a quiet machine; a busy one still counts processor time.
    assert float(reports[0].rpartition(" ")[2]) < 0.6


OPENED = """
import sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
import sdxl_cli.__main__, sdxl_core.presets
print(*(name for name in opened if name.endswith("entry_points.txt")))
"""


def test_no_package_is_searched_for_plugins(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "PYDANTIC_DISABLE_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", OPENED],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == []


def test_completion_leaves_torch_out(tmp_path: Path, tiny_folder: Path) -> None:
    words = "sdxl gen --sampler dpmpp_2"
    completing = {"_SDXL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sdxl_cli"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **completing},
    )
    assert "dpmpp_2m" in done.stdout.split()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sdxl_core.diffusion.samplers" in imported
    assert imported.isdisjoint({"torch", "transformers", "open_clip", "huggingface_hub", "scipy"})


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sdxl gen --preset sdxl-b", "sdxl-base-1.0"),
        ("sdxl gen --sampler dpmpp_2", "dpmpp_2m"),
        ("sdxl gen --schedule e", "edm"),
        ("sdxl gen --model tiny_b", "tiny_base.safetensors"),
        ("sdxl presets show mic", "micro"),
        ("sdxl insp", "inspect"),
    ],
)
def test_the_shell_completes_values(sdxl: Sdxl, monkeypatch: pytest.MonkeyPatch, words: str, offered: str) -> None:
    monkeypatch.setenv("_SDXL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert offered in sdxl().out.split()


LEAVING = """
import atexit, sys
import sdxl_cli.__main__

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
if len(sys.argv) > 3:
    sys.modules["torch"] = sys
atexit.register(print, "last words")
sys.argv = sys.argv[:3]
sdxl_cli.__main__.main()
"""


@pytest.mark.parametrize(("wanted", "loaded", "code"), [("list", False, 0), ("list", True, 0), ("lost", True, 2)])
def test_a_run_that_is_done_with_torch_ends_at_once(wanted: str, loaded: bool, code: int) -> None:
    command = [sys.executable, "-c", LEAVING, "presets", wanted, *(["torch"] if loaded else [])]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert ended.returncode == code
    assert ("micro" in ended.stdout) is (code == 0)
    assert "last words" in ended.stdout
    assert ("taken apart" in ended.stdout) is not (loaded and code == 0)


@pytest.mark.parametrize(
    ("started", "said"),
    [
        ("-m tool", None),
        ("tool/__main__.py", None),
        ("-m cProfile -m tool", "function calls"),
        ("-m cProfile tool/__main__.py", "function calls"),
        ("-m pdb -c continue -m tool", "The program exited via sys.exit(). Exit status: 0"),
        ("-i -m tool", "and on we go"),
    ],
)
def test_who_runs_the_program_has_the_last_word(tmp_path: Path, started: str, said: str | None) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__main__.py").write_text(LEAVING)
    ended = subprocess.run(
        [sys.executable, *started.split(), "presets", "list", "torch"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        input="print('and on', 'we go')",  # what -i goes on with
    )
    assert "micro" in ended.stdout, ended.stderr
    assert ("taken apart" in ended.stdout) is (said is not None)
    assert said is None or said in ended.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_from_the_start_is_no_error(closed: str) -> None:
    command = f"{sys.executable} -m sdxl_cli presets list {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("micro" in done.stdout) == (">&- 2" not in closed and closed != ">&-")


@pytest.mark.parametrize("argv", ["gen -", "gen --prompts -", "sigmas --sigmas -"])
def test_standard_input_that_is_closed_from_the_start_is_empty(argv: str) -> None:
    line = ["bash", "-c", f"{sys.executable} -m sdxl_cli {argv} <&-"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input" in done.stderr
