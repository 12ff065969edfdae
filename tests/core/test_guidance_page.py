"""docs/guidance.md names every way of guidance and every option with its default."""

from pathlib import Path

import pytest

from sdxl_core.guider_config import GUIDANCE_METHODS, GuiderConfig

PAGE = (Path(__file__).parents[2] / "docs" / "guidance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", GUIDANCE_METHODS)
def test_the_page_has_every_option_with_its_default(method: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{method}` |"))
    config = GuiderConfig.model_validate({method: {}})
    for option, value in getattr(config, method).model_dump().items():
        shown = "+".join(value) if isinstance(value, tuple) else value
        assert (f"`{option}`" if value is None else f"`{option}={shown}`") in row
