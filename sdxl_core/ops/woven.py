"""The order of a gated layer's weight in which one product makes value and gate of the same features together."""

from torch import Tensor


def weave(weight: Tensor) -> Tensor:
    """Value above gate (2 n, k), n a multiple of 8, as eight rows of the one, eight of the other, and so on.

    So one product makes both, of columns that are as many as the tensor cores take at best.
    """
    return weight.view(2, -1, 8, weight.shape[1]).transpose(0, 1).reshape(weight.shape)


def unweave(weight: Tensor) -> Tensor:
    """Value above gate again, of what is woven."""
    return weight.view(-1, 2, 8, weight.shape[1]).transpose(0, 1).reshape(weight.shape)
