"""A part of PyTorch that does not run until it is wanted, in a process of its own each time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdxl_cli.put_off import TRIED_IN, UNUSED, _Finder, _Later

ROOT = Path(__file__).parents[2]

RELEASE = ".".join(torch.__version__.split(".")[:2])

BEGIN = """
import sys
from sdxl_cli import put_off
from sdxl_cli.starting import importing

{before}
with importing("cpu"):
    import torch

late = sys.modules[put_off.UNUSED]
assert not any(isinstance(finder, put_off._Finder) for finder in sys.meta_path)
"""

NOT_YET = "assert not any(name.startswith('meta_') for name in vars(late)) and 'torch._decomp' not in sys.modules\n"
RUN = "assert any(name.startswith('meta_') for name in vars(late)) and 'torch._decomp.decompositions' in sys.modules\n"


def run(script: str, before: str = "") -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(before=before) + script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


tried = pytest.mark.skipif(RELEASE not in TRIED_IN, reason=f"PyTorch {RELEASE} was not tried")


@tried
def test_what_goes_through_all_modules_does_not_wake_it() -> None:
    run(
        "import inspect\n" + NOT_YET + "assert inspect.getmodule(late) is late and late.__file__ and late.__spec__\n"
        "assert not hasattr(late, '__path__') and not hasattr(late, '__wrapped__')\n"
        "torch.Generator(), torch.empty(2, device='meta').fill_(1)\n" + NOT_YET
    )


@tried
@pytest.mark.parametrize("use", ["late.meta_mm", "from torch._meta_registrations import *", "import torch._decomp"])
def test_the_first_use_of_it_runs_it(use: str) -> None:
    run(NOT_YET + use + "\n" + ("late.meta_mm\n" if "_decomp" in use else "") + RUN + "assert callable(late.meta_mm)\n")


@tried
def test_what_it_has_not_is_said_as_of_every_module() -> None:
    run(
        "try:\n    late.nothing\nexcept AttributeError as error:\n"
        "    assert str(error) == \"module 'torch._meta_registrations' has no attribute 'nothing'\", error\n"
        "else:\n    raise SystemExit(1)\n"
    )


@tried
def test_functions_that_take_its_imports_for_imported_have_them() -> None:
    run(
        NOT_YET + "import torch._decomp\nassert torch.broadcast_shapes((2,), (3, 1)) == (3, 2)\n"
        "import torch._refs as imported\nassert torch._refs is imported is sys.modules['torch._refs']\n"
    )
    run(NOT_YET + "assert torch.broadcast_shapes((2,), (3, 1)) == (3, 2) and torch._refs is sys.modules['torch._refs']")
    run(NOT_YET + "from torch import _refs\nassert _refs.add and _refs.add is torch._refs.add\n")


@tried
@pytest.mark.parametrize("first", ["_dynamo", "utils._content_store", "_prims", "_refs"])
def test_what_would_import_it_can_still_be_imported_first(first: str) -> None:
    run(
        f"import torch.{first}\nimport torch.utils._content_store as store, torch._prims, torch._refs\n"
        "assert callable(torch._prims.sin) and callable(store.prims.sin)\n"
        "assert all(vars(torch)[name] is sys.modules[f'torch.{name}'] for name in ('_prims', '_refs'))\n"
        "assert callable(late.meta_mm)\n"
    )


@pytest.mark.parametrize("version", ["2.11.0a0+git1", "2.14.0rc1", "2.110.0", "2", ""])
def test_what_is_not_one_of_the_tried_releases_gets_it_at_once(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert _Finder().find_spec(UNUSED, torch.__path__) is None


@pytest.mark.parametrize("version", ["2.11.0", "2.14.1+cu130", "2.11.0.post2"])
def test_every_build_of_a_tried_release_puts_it_off(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    spec = _Finder().find_spec(UNUSED, torch.__path__)
    assert spec is not None
    assert isinstance(spec.loader, _Later)


def test_a_release_that_was_not_tried_gets_it_at_once() -> None:
    run(RUN, before="put_off.TRIED_IN.clear()")
