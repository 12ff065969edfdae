"""How much memory a computation holds at its worst, counted tensor by tensor: no allocator, no other process."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that is made inside; views count once, what was there before not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (_storage(x) in self._users or _storage(x) not in given):
                self._hold(x)
        self.peak = max(self.peak, self.now)
        return out

    def _hold(self, x: Tensor) -> None:
        place, size = _storage(x), x.untyped_storage().nbytes()
        if place not in self._users:
            self.now += size
        self._users[place] = self._users.get(place, 0) + 1
        weakref.finalize(x, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.now -= size


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)  # tensors on the meta device have no address
