"""Kernels for NVIDIA GPUs, written in Triton; its modules import it, so import them only where a kernel is to run.

All of them compute in float32, whatever dtype they read and write, and give the same bits at every run.
"""

import torch


def why_not(device: torch.device) -> str | None:
    """The reason why these kernels cannot run there, or None; the first call of a process tries one, in 0.5 s."""
    if device.type != "cuda":
        return f"it needs a CUDA device, the device is {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0, this GPU has {major}.{minor}"
    try:
        from sdxl_core.ops.kernels import gates

        gates.geglu(torch.ones(1, 16, device=device), None)
    except Exception as error:  # Triton needs a C compiler and a cache it can write to, and fails in ways of its own
        return f"a trial run of Triton failed ({type(error).__name__}: {error})".splitlines()[0]
    return None
