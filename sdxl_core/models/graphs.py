"""A network whose launches are recorded once for each shape of its input, and made again by one call: CUDA graphs."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from sdxl_core.models.fused import Remembered
from sdxl_core.types import Touch

KEPT = 4
"""Shapes whose recordings are kept: with and without guidance, in a batch and in the smaller one at the end."""


class Recording(Protocol):
    """What a function did with the device: done again, from and to the same places in memory."""

    output: Tensor

    def replay(self) -> None:
        """Do it again; what was in `output` is overwritten."""


_Seen = tuple[Tensor, int | None]

Record = Callable[[Callable[[], Tensor], Any], Recording]
"""(what to record, a recording whose memory may be used again while this one works, or None) -> the recording."""


class CudaGraph:
    """A CUDA graph of a function that was run before, so that its libraries have nothing left to set up.

    Args:
        run: works on tensors that stay where they are, and waits for nothing.
        beside: shares its memory with this one: the two must not run at once, nor leave something in it for later.
    """

    def __init__(self, run: Callable[[], Tensor], beside: "CudaGraph | None" = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        stream = torch.cuda.current_stream()
        try:
            # thread_local: what other threads do with the device meanwhile is no concern of this graph.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self.output = run()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own

    def replay(self) -> None:
        """See `Recording`."""
        self._graph.replay()


@dataclass(slots=True)
class _Call:
    """Calls of one shape.

    Args:
        x, t, crossattn, vector: inputs that stay where they are.
        told: what the caller gave for the last two, as `_seen` tells it.
        recording: of the call; None until the second one, or where it cannot be had.
        refused: it cannot.
    """

    x: Tensor
    t: Tensor
    crossattn: Tensor
    vector: Tensor
    told: tuple[_Seen, _Seen]
    recording: Recording | None = None
    refused: bool = False


class Graphed(nn.Module):
    """A UNet for inference whose call is one launch from the third of a shape on; the same numbers bit for bit.

    The first call of a shape runs as ever, from inputs that stay where they are; the second is recorded. Words and
    vector are copied in, and what `Remembered` layers make of them is made anew, only where the caller brings other
    tensors: nobody may write into those. Calls under a `Touch` are never recorded. One thread at a time may call it.

    Args:
        network: whose parameters stay where they are; `to` and `load_state_dict` of this module forget what is
            recorded.
        record: makes a recording.
    """

    def __init__(self, network: nn.Module, record: Record = CudaGraph) -> None:
        super().__init__()
        self.network = network
        self._record = record
        self._remembered = [module for module in network.modules() if isinstance(module, Remembered)]
        self._calls: OrderedDict[tuple[object, ...], _Call] = OrderedDict()

    @property
    def recorded(self) -> int:
        """How many shapes have a recording."""
        return sum(call.recording is not None for call in self._calls.values())

    def forward(self, x: Tensor, t: Tensor, crossattn: Tensor, vector: Tensor, touch: Touch | None = None) -> Tensor:
        """See `UNet`; what is returned belongs to the caller."""
        if touch is not None or torch.is_grad_enabled():
            out: Tensor = self.network(x, t, crossattn, vector, touch)
            return out
        key = tuple((given.shape, given.dtype) for given in (x, t, crossattn, vector))
        call = self._calls.get(key)
        # Not only while it lasts: tensors of inference mode can be written into in no other.
        with torch.inference_mode(), _on(x.device):
            if call is None:
                return self._first(key, x, t, crossattn, vector)
            self._calls.move_to_end(key)
            self._take(call, x, t, crossattn, vector)
            if call.recording is None and not call.refused:
                self._make(call)
            if call.recording is None:
                return self._run(call)
            call.recording.replay()
            return call.recording.output.clone()

    def forget(self) -> None:
        """Drop what is recorded, and the memory for it."""
        self._calls.clear()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's; forgets what is recorded."""
        self.forget()
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.forget()  # `to` and the like end here
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _first(self, key: tuple[object, ...], x: Tensor, t: Tensor, crossattn: Tensor, vector: Tensor) -> Tensor:
        while len(self._calls) >= KEPT:
            self._calls.popitem(last=False)
        x, t = _placed(x), _placed(t)
        call = _Call(x, t, _placed(crossattn), _placed(vector), told=(_seen(crossattn), _seen(vector)))
        out = self._run(call)
        self._calls[key] = call
        return out

    def _take(self, call: _Call, x: Tensor, t: Tensor, crossattn: Tensor, vector: Tensor) -> None:
        """Copy the inputs to their places, and renew what was made of those that stay the same for long."""
        call.x.copy_(x)
        call.t.copy_(t)
        told = _seen(crossattn), _seen(vector)
        for place, before, now in zip((call.crossattn, call.vector), call.told, told, strict=True):
            if before[0] is not now[0] or before[1] != now[1]:
                place.copy_(now[0])
                for module in self._remembered:
                    module.refresh(place)
        call.told = told

    def _make(self, call: _Call) -> None:
        """Record a call; where that cannot be done, say so once and go on without."""
        beside = next((other.recording for other in self._calls.values() if other.recording is not None), None)
        try:
            call.recording = self._record(lambda: self._run(call), beside)
        except RuntimeError as error:  # no memory for it, or a kernel that cannot be recorded
            call.refused = True
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"no CUDA graph for {tuple(call.x.shape)}, which is slower: {reason}", stacklevel=2)

    def _run(self, call: _Call) -> Tensor:
        out: Tensor = self.network(call.x, call.t, call.crossattn, call.vector, None)
        return out


def _placed(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _seen(x: Tensor) -> _Seen:
    """A tensor, held so that no other takes its name, and how often it was written into where PyTorch counts that."""
    return x, None if x.is_inference() else x._version
