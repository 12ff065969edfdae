"""Tensors between host and device, without waiting for what the device still computes."""

from collections.abc import Callable

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, in its dtype.

    On CUDA a plain copy from the host waits until everything before it is done; one from pinned memory does not.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def arriving(x: Tensor) -> Callable[[], Tensor]:
    """Begin to fetch a small tensor; what is returned waits for it, and for nothing that was begun later.

    On the CPU it is x itself.
    """
    if x.device.type != "cuda":
        return lambda: x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    # Blocking: the thread sleeps meanwhile, and others have its core.
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(x.device))

    def value() -> Tensor:
        arrived.synchronize()
        return host

    return value
