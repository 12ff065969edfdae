"""Which noise levels training sees: (b, generator) -> (b,) levels, float32, on the generator's device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SigmaSampling = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class DiscreteSampling:
    """Uniform over the trained levels, or over a range of them.

    Args:
        table: (num_idx,) ascending levels; `Denoiser.table`.
        first: lowest index drawn.
        last: one past the highest index drawn; None: the whole table. SDXL's refiner was trained on [0, 200).

    Raises:
        ValueError: the range is empty or leaves the table.
    """

    table: Tensor
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.first < self._stop <= len(self.table):
            raise ValueError(f"indices [{self.first}, {self._stop}) are no range of {len(self.table)} levels")

    def __call__(self, b: int, generator: torch.Generator) -> Tensor:
        """Draw b levels."""
        index = torch.randint(self.first, self._stop, (b,), generator=generator, device=generator.device)
        return self.table.to(generator.device)[index]

    @property
    def _stop(self) -> int:
        return len(self.table) if self.last is None else self.last


@dataclass(frozen=True, slots=True)
class EdmSampling:
    """Log-normal: ln(sigma) ~ N(p_mean, p_std^2).

    For a flow this is the logit-normal sampling of its time, since ln(sigma) = ln(t / (1 - t)).

    Source: Karras et al. 2022, arXiv:2206.00364, table 1; of the flow: Esser et al. 2024, arXiv:2403.03206.
    """

    p_mean: float = -1.2
    p_std: float = 1.2

    def __call__(self, b: int, generator: torch.Generator) -> Tensor:
        """Draw b levels."""
        normal = torch.randn(b, generator=generator, device=generator.device)
        return (self.p_mean + self.p_std * normal).exp()
