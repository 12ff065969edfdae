"""Stable Diffusion XL as a library: what the commands do, callable from Python.

    from sdxl_core import build_plan, decode, load_engine, load_preset, sample

    preset = load_preset("sdxl-base-1.0")
    plan = build_plan(preset, "a cat", seed=1)
    engine = load_engine(preset.model, "sd_xl_base_1.0.safetensors")
    for step in sample(engine, [plan]):
        ...
    pictures = decode(engine, step.x)

Importing this package imports nothing else: every name below is fetched when it is first asked for, and only
`load_engine`, `Engine`, `sample` and `decode` bring torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdxl_core.engine import Engine as Engine
    from sdxl_core.engine import load_engine as load_engine
    from sdxl_core.errors import SdxlError as SdxlError
    from sdxl_core.pipeline import decode as decode
    from sdxl_core.pipeline import sample as sample
    from sdxl_core.plan import Plan as Plan
    from sdxl_core.plan import build_plan as build_plan
    from sdxl_core.presets import list_presets as list_presets
    from sdxl_core.presets import load_preset as load_preset

__version__ = "0.1.0"

_HOMES = {
    "Engine": "engine",
    "Plan": "plan",
    "SdxlError": "errors",
    "build_plan": "plan",
    "decode": "pipeline",
    "list_presets": "presets",
    "load_engine": "engine",
    "load_preset": "presets",
    "sample": "pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
