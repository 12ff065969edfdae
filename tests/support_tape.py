"""A recording of what a network does, for devices that have no graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdxl_core.models.graphs import Tensors


class Tape(TorchDispatchMode):
    """A recording in Python: each operation is made again, from and to the same places in memory."""

    def __init__(self, run: Callable[[], Tensors], beside: object = None) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        with self:
            self.outputs = run()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for output in self.outputs:
            output.fill_(torch.nan)
        for func, args, kwargs, out in self.done:
            for place, again in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != again.data_ptr():  # a view has nothing to write
                    place.copy_(again)
