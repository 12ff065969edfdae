"""A part of PyTorch that does not run until it is wanted, in a process of its own each time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdxl_cli.put_off import TRIED_IN

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


def test_a_release_that_was_not_tried_gets_it_at_once() -> None:
    run(RUN, before="put_off.TRIED_IN.clear()")
