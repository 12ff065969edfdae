"""Networks whose launches are recorded once for each shape of their input, and made again by one call: CUDA graphs."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from sdxl_core.conditioning.text import ClipText, OpenClipText, TextFeatures, TextTower
from sdxl_core.models.fused import Remembered
from sdxl_core.types import Touch

KEPT = 4
"""Shapes whose recordings are kept: with and without guidance, in a batch and in the smaller one at the end."""

TOWER_RUNS = 3
"""Calls of a text tower before one is recorded: a recording takes as long as some ten calls save."""

Tensors = tuple[Tensor, ...]


class Recording(Protocol):
    """What a function did with the device: done again, from and to the same places in memory."""

    outputs: Tensors

    def replay(self) -> None:
        """Do it again; what was in `outputs` is overwritten."""


Record = Callable[[Callable[[], Tensors], Any], Recording]
"""(what to record, a recording whose memory may be used again while this one works, or None) -> the recording."""


class CudaGraph:
    """A CUDA graph of a function that was run before, so that its libraries have nothing left to set up.

    Args:
        run: works on tensors that stay where they are, and waits for nothing.
        beside: shares its memory with this one: the two must not run at once, nor leave something in it for later.
    """

    def __init__(self, run: Callable[[], Tensors], beside: "CudaGraph | None" = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        stream = torch.cuda.current_stream()
        try:
            # thread_local: what other threads do with the device meanwhile is no concern of this graph.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self.outputs = run()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own

    def replay(self) -> None:
        """See `Recording`."""
        self._graph.replay()


_Seen = tuple[Tensor, int | None]


@dataclass(slots=True)
class _Call:
    """Calls of one shape.

    Args:
        fresh, lasting: inputs, in places that stay.
        seen: what the caller gave for the lasting ones, as `_seen` tells it.
        runs: how many there were without a recording.
        recording: of the call; None until it is made, or where it cannot be.
    """

    fresh: Tensors
    lasting: Tensors
    seen: tuple[_Seen, ...]
    runs: int = 0
    recording: Recording | None = None


class Recorded:
    """A function of tensors, for inference, that is one launch once it was called a few times with a shape.

    The numbers are the same bit for bit. One thread at a time may call it.

    Args:
        run: takes the inputs in their order; what else it reads stays where it is, or `forget` is called.
        record: makes a recording.
        runs: of a shape before it is recorded.
        renew: told of the place of a lasting input that was written into.
    """

    def __init__(
        self,
        run: Callable[..., Tensors],
        record: Record,
        *,
        runs: int = 1,
        renew: Callable[[Tensor], None] = lambda place: None,
    ) -> None:
        self._run, self._record, self._runs, self._renew = run, record, runs, renew
        self._calls: OrderedDict[tuple[object, ...], _Call] = OrderedDict()

    def __len__(self) -> int:
        """How many shapes have a recording."""
        return sum(call.recording is not None for call in self._calls.values())

    def __call__(self, fresh: Tensors, lasting: Tensors = ()) -> Tensors:
        """Run it.

        Args:
            fresh: inputs that are others each time.
            lasting: inputs that are read only where the caller brings another tensor than the last time: nobody may
                write into those.

        Returns:
            What belongs to the caller.
        """
        key = tuple((given.shape, given.dtype) for given in (*fresh, *lasting))
        # Not only while it lasts: tensors of inference mode can be written into in no other.
        with torch.inference_mode(), _on(fresh[0].device):
            call = self._calls.get(key)
            if call is None:
                while len(self._calls) >= KEPT:
                    self._calls.popitem(last=False)
                seen = tuple(map(_seen, lasting))
                call = _Call(tuple(map(_placed, fresh)), tuple(map(_placed, lasting)), seen)
                outputs = self._run_once(call)
                self._calls[key] = call
                return outputs
            self._calls.move_to_end(key)
            self._take(call, fresh, lasting)
            if call.recording is None and call.runs == self._runs:
                self._make(call)
            if call.recording is None:
                return self._run_once(call)
            call.recording.replay()
            return tuple(output.clone() for output in call.recording.outputs)

    def forget(self) -> None:
        """Drop what is recorded, and the memory for it."""
        self._calls.clear()

    def _run_once(self, call: _Call) -> Tensors:
        outputs = self._run(*call.fresh, *call.lasting)
        call.runs += 1
        return outputs

    def _take(self, call: _Call, fresh: Tensors, lasting: Tensors) -> None:
        """Copy the inputs to their places, and renew what was made of those that last."""
        for place, given in zip(call.fresh, fresh, strict=True):
            place.copy_(given)
        seen = tuple(map(_seen, lasting))
        for place, before, now in zip(call.lasting, call.seen, seen, strict=True):
            if before[0] is not now[0] or before[1] != now[1]:
                place.copy_(now[0])
                self._renew(place)
        call.seen = seen

    def _make(self, call: _Call) -> None:
        """Record a call; where that cannot be done, say so once and go on without."""
        beside = next((other.recording for other in self._calls.values() if other.recording is not None), None)
        try:
            call.recording = self._record(lambda: self._run(*call.fresh, *call.lasting), beside)
        except RuntimeError as error:  # no memory for it, or a kernel that cannot be recorded
            shape = tuple(call.fresh[0].shape)
            warnings.warn(f"no CUDA graph for {shape}, which is slower: {_reason(error)}", stacklevel=2)
            call.runs += 1  # past the turn


class _Forgetful(nn.Module):
    """Forgets what is recorded of it when its weights move or others take their place."""

    recorded: Recorded

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's."""
        self.recorded.forget()
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.recorded.forget()  # `to` and the like end here
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Graphed(_Forgetful):
    """A UNet whose call for inference is one launch from the second of a shape on.

    Words and vector are copied in, and what `Remembered` layers make of them is made anew, only where the caller brings
    other tensors. Calls under a `Touch` are never recorded.

    Args:
        network: its weights stay where they are, unless they are moved or loaded through this module.
        record: see `Recorded`.
    """

    def __init__(self, network: nn.Module, record: Record = CudaGraph) -> None:
        super().__init__()
        self.network = network
        remembered = [module for module in network.modules() if isinstance(module, Remembered)]

        def renew(place: Tensor) -> None:
            for module in remembered:
                module.refresh(place)

        self.recorded = Recorded(lambda *inputs: (network(*inputs, None),), record, renew=renew)

    def forward(self, x: Tensor, t: Tensor, crossattn: Tensor, vector: Tensor, touch: Touch | None = None) -> Tensor:
        """See `UNet`; what is returned belongs to the caller."""
        if touch is not None or torch.is_grad_enabled():
            out: Tensor = self.network(x, t, crossattn, vector, touch)
            return out
        return self.recorded((x, t), (crossattn, vector))[0]


class _GraphedTower(_Forgetful):
    """A text tower whose call for inference is one launch after `TOWER_RUNS`.

    Args:
        plain: the tower, which shares its layers with this one.
        record: see `Recorded`.
    """

    config: Any

    def __init__(self, plain: TextTower, record: Record = CudaGraph) -> None:
        nn.Module.__init__(self)
        self.config = plain.config
        for name, child in plain.named_children():
            self.add_module(name, child)

        def run(ids: Tensor) -> Tensors:
            features: TextFeatures = plain(ids)
            return (features.hidden,) if features.pooled is None else (features.hidden, features.pooled)

        self.recorded = Recorded(run, record, runs=TOWER_RUNS)

    def forward(self, ids: Tensor) -> TextFeatures:
        if torch.is_grad_enabled():
            features: TextFeatures = super().forward(ids)
            return features
        return TextFeatures(*self.recorded((ids,)))


class GraphedClipText(_GraphedTower, ClipText):
    """See `_GraphedTower`."""


class GraphedOpenClipText(_GraphedTower, OpenClipText):
    """See `_GraphedTower`."""


def forget_recordings(*models: nn.Module) -> bool:
    """Drop what is recorded of models and their parts, and the memory for it; whether there was any."""
    parts = [part for model in models for part in model.modules() if isinstance(part, _Forgetful)]
    recorded = [part.recorded for part in parts if len(part.recorded)]
    for each in recorded:
        each.forget()
    return bool(recorded)


def graphed_tower(plain: TextTower, record: Record = CudaGraph) -> TextTower:
    """A tower with the same weights whose call for inference is recorded."""
    return (GraphedClipText if isinstance(plain, ClipText) else GraphedOpenClipText)(plain, record)


def _reason(error: BaseException) -> str:
    """Why a recording failed; the end of one that did fails again, and says only that it did."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _placed(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _seen(x: Tensor) -> _Seen:
    """A tensor, held so that no other takes its name, and how often it was written into where PyTorch counts that."""
    return x, None if x.is_inference() else x._version
