"""Modules that have names and shapes before they have weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _NoInit(TorchFunctionMode):
    """Leaves out the random numbers that layers fill themselves with.

    On the meta device they are of no use, and drawing them there makes PyTorch import its compiler: 1.5 s.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device: parameters and buffers made inside have a shape and a dtype but no memory."""
    with torch.device("meta"), _NoInit():
        yield
