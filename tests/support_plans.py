"""Plans as the command line makes them, without the user's own presets."""

from pathlib import Path
from typing import Any

from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import load_preset

NO_PRESETS = Path(__file__).parent / "none"


def plan_of(prompt: str = "a cat", preset: str = "sdxl-base-1.0", **flags: Any) -> Plan:
    """A plan as the command line makes it: `recipe_x_y` is the flag `recipe.x.y`, the rest goes to `build_plan`."""
    recipe = {key.replace("_", ".", 1): value for key, value in flags.items() if key.startswith("recipe_")}
    recipe = {key.replace("__", "."): value for key, value in recipe.items()}
    rest = {key: value for key, value in flags.items() if not key.startswith("recipe_")}
    return build_plan(load_preset(preset, recipe, user=NO_PRESETS), prompt, **rest)
