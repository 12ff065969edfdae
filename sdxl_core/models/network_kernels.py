"""What the blocks for a GPU are made of: kernels, each given by what it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sdxl_core.models.fused_autoencoder import Kernels


class LayerNormKernel(Protocol):
    """Layer norm of rows, of the sum with others, and that sum; see `sdxl_core.ops.kernels.layer_norms.layer_norm`."""

    def __call__(  # noqa: D102
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        delta: Tensor | None = None,
        delta_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


Gated = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(rows, weight, bias) -> GEGLU of the linear layer."""


def never_woven(weight: Tensor) -> None:
    """What a `NetworkKernels` says that has no kernel for woven weights."""


@dataclass(frozen=True, slots=True)
class NetworkKernels(Kernels):
    """What is done in one pass over rows, beside what is done in one over maps.

    Args:
        layer_norm: with a bias that is owed to its input.
        gated: of a plain weight.
        added: (x, rows, weight) -> x + rows W^T, written into x.
        join: (x, y) -> the channels of both maps.
        woven: the same as `gated` of this weight once it is woven, or None where that gains nothing.
    """

    layer_norm: LayerNormKernel
    gated: Gated
    added: Callable[[Tensor, Tensor, Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    woven: Callable[[Tensor], Gated | None] = never_woven


def added_in_place(x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """A residual linear layer whose sum is made by the matrix product: x += rows W^T, rounded once.

    Args:
        x: (m, n).
        rows: (m, k).
        weight: (n, k).
    """
    return x.addmm_(rows, weight.T)
