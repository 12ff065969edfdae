"""An average of the weights over the steps of training."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Ema:
    """Exponential moving average of named weights, float32, warmed up.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first steps do not linger.
    Source: the original engine's averaging (decay 0.9999 with that warm-up).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: weight.detach().float().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Move the average towards the weights of the step just made."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        targets = [weights[name].detach().float() for name in self.shadow]
        torch._foreach_lerp_(list(self.shadow.values()), targets, 1 - decay)

    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a saved average; names must be the same."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
        self.updates = updates


def trainable(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The weights that learn, by name."""
    return {name: weight for name, weight in named if weight.requires_grad}
