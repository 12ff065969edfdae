"""Kernels that are set up while the one before them ends (programmatic dependent launch, Hopper and later)."""

from typing import Any

import torch
import triton
import triton.language as tl

EARLY = False
"""Whether kernels begin so; each then waits for the one before it to be done before it touches memory."""


def begun(device: torch.device) -> dict[str, Any]:
    """What a kernel that calls `wait` is launched with."""
    if EARLY and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@triton.jit
def wait(EARLY: tl.constexpr):
    """Let the next kernel be set up, and wait until what the one before wrote can be read."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
