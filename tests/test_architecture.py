"""The house plan as a test: imports point down, only the command line talks, and what must be instant stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

import sdxl_core

ROOT = Path(__file__).parents[1]

FLOORS = {
    "sdxl_core.errors": 0,
    "sdxl_core.unknown": 0,
    "sdxl_core.strict": 0,
    "sdxl_core.guider_config": 0,
    "sdxl_core.config": 0,
    "sdxl_core.compat": 0,
    "sdxl_core.typed_toml": 0,
    "sdxl_core.prediction": 0,
    "sdxl_core.progress": 0,
    "sdxl_core.flops": 0,
    "sdxl_core.resolutions": 0,
    "sdxl_core.output": 0,
    "sdxl_core.naming": 0,
    "sdxl_core.types": 1,
    "sdxl_core.ops": 1,
    "sdxl_core.diffusion": 2,
    "sdxl_core.models": 3,
    "sdxl_core.conditioning": 3,
    "sdxl_core.checkpoints": 3,
    "sdxl_core.presets": 4,
    "sdxl_core.source": 4,
    "sdxl_core.source_pictures": 4,
    "sdxl_core.masks": 4,
    "sdxl_core.canvas": 4,
    "sdxl_core.texts": 4,
    "sdxl_core.refiner": 4,
    "sdxl_core.plan": 4,
    "sdxl_core.batching": 4,
    "sdxl_core.work": 4,
    "sdxl_core.devices": 4,
    "sdxl_core.engine": 4,
    "sdxl_core.passes": 4,
    "sdxl_core.two_models": 4,
    "sdxl_core.first_stage": 4,
    "sdxl_core.finite": 4,
    "sdxl_core.pipeline": 4,
    "sdxl_core.from_pictures": 4,
    "sdxl_core.records": 4,
    "sdxl_core.picture_files": 4,
    "sdxl_core.latent_files": 4,
    "sdxl_core.training": 4,
    "sdxl_cli": 5,
}

TORCH_FREE = [
    "sdxl_core",
    "sdxl_core.errors",
    "sdxl_core.unknown",
    "sdxl_core.guider_config",
    "sdxl_core.compat",
    "sdxl_core.config",
    "sdxl_core.flops",
    "sdxl_core.progress",
    "sdxl_core.types",
    "sdxl_core.typed_toml",
    "sdxl_core.prediction",
    "sdxl_core.presets",
    "sdxl_core.resolutions",
    "sdxl_core.output",
    "sdxl_core.naming",
    "sdxl_core.diffusion.discretization",
    "sdxl_core.diffusion.handover",
    "sdxl_core.diffusion.interval",
    "sdxl_core.diffusion.samplers",
    "sdxl_core.diffusion.schedules",
    "sdxl_core.conditioning.tokenizer",
    "sdxl_core.conditioning.request",
    "sdxl_core.checkpoints.header",
    "sdxl_core.checkpoints.detect",
    "sdxl_core.checkpoints.check",
    "sdxl_core.checkpoints.markers",
    "sdxl_core.checkpoints.find",
    "sdxl_core.checkpoints.hashing",
    "sdxl_core.source",
    "sdxl_core.refiner",
    "sdxl_core.plan",
    "sdxl_core.batching",
    "sdxl_core.work",
    "sdxl_core.source_pictures",
    "sdxl_core.masks",
    "sdxl_core.canvas",
    "sdxl_core.records",
    "sdxl_core.texts",
    "sdxl_core.picture_files",
    "sdxl_core.latent_files",
    "sdxl_core.training.config",
    "sdxl_core.training.presets",
    "sdxl_cli.app",
    "sdxl_cli.jobs",
    "sdxl_cli.pictures",
    "sdxl_cli.show_sigmas",
    "sdxl_cli.chart",
]


def sources() -> dict[str, ast.Module]:
    """Module name -> syntax tree, for both packages."""
    found = {}
    for package in ("sdxl_core", "sdxl_cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


SOURCES = sources()


def room(module: str) -> str | None:
    """The room of a module of ours, or None for the package `sdxl_core` itself and for what is not ours."""
    return next((r for r in FLOORS if module == r or module.startswith(r + ".")), None)


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, inside functions too; `from a import b` is a.b where b is a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in SOURCES else module


def test_every_module_has_a_floor() -> None:
    homeless = [name for name in SOURCES if name != "sdxl_core" and room(name) is None]
    assert homeless == []


def test_imports_point_down() -> None:
    upward = [
        f"{name} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})"
        for name, tree in SOURCES.items()
        for target in imports(tree)
        if (here := room(name)) and (there := room(target)) and FLOORS[there] > FLOORS[here]
    ]
    assert upward == []


def test_networks_and_samplers_do_not_know_each_other() -> None:
    meetings = [
        f"{name} imports {target}"
        for name, tree in SOURCES.items()
        for target in imports(tree)
        if (here := room(name)) and (there := room(target)) and (FLOORS[here], FLOORS[there]) == (3, 2)
    ]
    assert meetings == []


def test_only_the_command_line_talks_to_the_user() -> None:
    talk = []
    for name, tree in SOURCES.items():
        if not name.startswith("sdxl_core"):
            continue
        talk += [f"{name} imports {m}" for m in imports(tree) if m.split(".")[0] in {"typer", "rich", "click"}]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"}:
                talk.append(f"{name}:{node.lineno} {node.func.id}()")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "sys.argv",
                "sys.exit",
                "sys.stdout",
                "sys.stderr",
                "os.environ",
                "os.getenv",
            }:
                talk.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert talk == []


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    return total - ((first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0)


def test_no_file_and_no_function_outgrows_a_reader() -> None:
    long = [
        f"{name}.{node.name}: {code_lines(node)} lines"
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and code_lines(node) > 60
    ]
    long += [
        f"{name}: {tree.body[-1].end_lineno} lines"
        for name, tree in SOURCES.items()
        if tree.body and (tree.body[-1].end_lineno or 0) > 400
    ]
    assert long == []


IN_ORDER = """
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    if found := [heavy for heavy in {heavy!r} if heavy in sys.modules]:
        sys.exit(f"{{name}} imports {{found}}")
"""


def test_what_must_be_instant_leaves_torch_out() -> None:
    code = IN_ORDER.format(names=TORCH_FREE, heavy=["torch", "transformers", "open_clip", "huggingface_hub"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_offers_what_the_commands_use() -> None:
    for name in dir(sdxl_core):
        assert getattr(sdxl_core, name) is not None or name.startswith("__")
    assert {"Plan", "build_plan", "load_engine", "load_preset", "sample", "decode"} <= set(dir(sdxl_core))
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        _ = sdxl_core.draw


def test_the_version_is_said_once() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sdxl_core.__version__ == project["version"]
