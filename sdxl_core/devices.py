"""Where the arithmetic runs, in which precision, and what happens when memory does not suffice."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdxl_core.errors import DeviceError, MemoryExhaustedError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
# What the CPU allocator, oversized shapes, oneDNN, cuBLAS and cuDNN say; none has an exception class of its own.
_ALLOCATION_FAILED = re.compile(
    r"can't allocate memory|not enough memory|Storage size calculation overflowed|could not create a primitive$"
    r"|_STATUS_ALLOC_FAILED"
)


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`: auto, cpu, cuda or cuda:N; auto is the first CUDA device, or else the CPU.

    Raises:
        DeviceError: no such device here, with the reason.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise DeviceError(f"unknown device {name!r}", hint="one of: auto, cpu, cuda, cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    reason = _why_no_cuda()
    if name == "auto":
        return torch.device("cpu") if reason else torch.device("cuda:0")
    if reason:
        raise DeviceError(f"device {name!r} cannot be used: {reason}", hint="--device cpu works everywhere")
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise DeviceError(f"device {name!r} does not exist: there are {count}, counted from cuda:0")
    return torch.device("cuda", index)


def _why_no_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # a driver that is too old is told by a warning
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return None
    told = str(caught[0].message).split("(Triggered")[0].strip() if caught else ""
    return told or "PyTorch finds no NVIDIA driver or no device"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of network and text towers: auto, float32, float16 or bfloat16.

    auto is float16 on CUDA, bfloat16 on a CPU that multiplies it natively, else float32.

    Raises:
        DeviceError: no such dtype, or this device does not run it well.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if has_native_bfloat16() else torch.float32
    if name not in DTYPES:
        raise DeviceError(f"unknown dtype {name!r}", hint=f"one of: auto, {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    if device.type == "cpu" and dtype is torch.float16:
        raise DeviceError(
            "float16 cannot be used on the CPU: it is many times slower there than float32, and overflows",
            hint="--dtype bfloat16 needs as little memory",
        )
    if (
        device.type == "cuda"
        and dtype is torch.bfloat16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bfloat16", hint="--dtype float16")
    return dtype


def has_native_bfloat16() -> bool:
    """Whether this CPU has bfloat16 dot products in hardware; without them float32 is faster."""
    # The oldest PyTorch that we run on cannot tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in _NATIVE_BFLOAT16)


def settle_arithmetic(device: torch.device) -> None:
    """Let CUDA compute in the dtype it is given, in the whole process.

    By itself PyTorch has float32 convolutions rounded to TF32 (10 bits), and lets partial sums of 16-bit products be
    added in 16 bit.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def dtype_name(dtype: torch.dtype) -> str:
    """`float16` of `torch.float16`."""
    return str(dtype).removeprefix("torch.")


def free_memory_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that can still be had on `device`, or None where the system does not say.

    On the CPU the least of what the machine, this process' control group and its limit (`ulimit -v`) have left.

    Args:
        device: cpu or cuda.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = _number(root / "proc/meminfo", r"MemAvailable:\s+(\d+) kB")
    machine = None if available is None else available * 1024
    known = [machine, _free_in_group(root / "sys/fs/cgroup"), _free_in_limit(root / "proc/self")]
    return min((count for count in known if count is not None), default=None)


def _number(file: Path, line: str) -> int | None:
    """The number that `line` captures in a file of the system, None without one."""
    try:
        match = re.search(f"^{line}", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None


def _free_in_group(folder: Path) -> int | None:
    """Bytes below the limit of a control group (version 2), page cache not counted; None without a limit."""
    limit, used = _number(folder / "memory.max", r"(\d+)"), _number(folder / "memory.current", r"(\d+)")
    if limit is None or used is None:
        return None
    return max(0, limit - used + (_number(folder / "memory.stat", r"file (\d+)") or 0))


def _free_in_limit(folder: Path) -> int | None:
    """Bytes below the limit of this process' address space; None without a limit."""
    limit, used = (
        _number(folder / "limits", r"Max address space +(\d+)"),
        _number(folder / "status", r"VmSize:\s+(\d+)"),
    )
    return None if limit is None or used is None else max(0, limit - used * 1024)


def require_memory(needed_bytes: int, device: torch.device, doing: str, hint: str) -> None:
    """Refuse work that cannot fit, before the operating system kills the process for it.

    Raises:
        MemoryExhaustedError: says what is needed and what is free.
    """
    free = free_memory_bytes(device)
    if free is not None and needed_bytes > free:
        raise MemoryExhaustedError(
            f"not enough memory for {doing}: "
            f"about {gigabytes(needed_bytes)} are needed, {gigabytes(free)} are free on {device}",
            hint=hint,
        )


@contextmanager
def memory_guard(device: torch.device, doing: str, hint: str) -> Iterator[None]:
    """Turn every way of running out of memory into one error with numbers.

    Raises:
        MemoryExhaustedError: the block ran out of memory on the device or the host.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _exhausted(device, doing, hint) from error
    except RuntimeError as error:
        if _ALLOCATION_FAILED.search(str(error)) is None:
            raise
        raise _exhausted(device, doing, hint) from error


def _exhausted(device: torch.device, doing: str, hint: str) -> MemoryExhaustedError:
    free = free_memory_bytes(device)
    left = "" if free is None else f": {gigabytes(free)} are free on {device}"
    return MemoryExhaustedError(f"out of memory while {doing}{left}", hint=hint)


def gigabytes(count: int) -> str:
    """`1.2 GB`, decimal."""
    return f"{count / 1e9:.1f} GB"
