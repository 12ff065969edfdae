"""Prompts that were encoded before need no tower again."""

import torch

from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.conditioning.text import TextFeatures

PROMPTS_KEPT = 64
"""Pairs of prompts whose features are kept: each 77 x 2048 + 1280 numbers in SDXL, in all 20 MB in half precision."""


class TextMemory:
    """Features of the prompts that were asked for last, each encoded once and by itself.

    For weights that stay as they are: one memory belongs to one conditioner.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str | None], tuple[TextFeatures, ...]] = {}

    def encode(self, conditioner: Conditioner, request: ConditionRequest) -> tuple[TextFeatures, ...]:
        """Features of one request's prompts from each tower, one row each; see `Conditioner.encode_text`."""
        prompts = request.prompt, request.prompt_2
        features = self._kept.pop(prompts, None) or conditioner.encode_text([request])
        self._kept[prompts] = features  # the last one now
        if len(self._kept) > PROMPTS_KEPT:
            del self._kept[next(iter(self._kept))]
        return features

    def move(self, device: torch.device) -> None:
        """Follow the conditioner to a device."""
        for prompts, features in self._kept.items():
            self._kept[prompts] = tuple(part.to(device) for part in features)
