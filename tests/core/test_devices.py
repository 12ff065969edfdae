from pathlib import Path

import pytest
import torch

from sdxl_core.devices import (
    free_memory_bytes,
    memory_guard,
    require_memory,
    resolve_device,
    resolve_dtype,
    settle_arithmetic,
)
from sdxl_core.errors import DeviceError, MemoryExhaustedError

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == CPU


@without_cuda
def test_auto_falls_back_to_the_cpu() -> None:
    assert resolve_device("auto") == CPU


@without_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_no_cuda_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' cannot be used: .*(without CUDA|NVIDIA)"):
        resolve_device(name)


@pytest.mark.gpu
def test_a_cuda_device_beyond_the_last_is_refused() -> None:
    with pytest.raises(DeviceError, match="does not exist"):
        resolve_device("cuda:99")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "mps"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        resolve_device(name)


def test_automatic_dtype_follows_what_the_device_multiplies() -> None:
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert resolve_dtype("auto", CPU) is (torch.bfloat16 if native else torch.float32)
    assert resolve_dtype("auto", torch.device("cuda:0")) is torch.float16


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_named_dtype_is_taken(name: str, dtype: torch.dtype) -> None:
    assert resolve_dtype(name, CPU) is dtype


def test_float16_on_the_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(DeviceError, match="slower"):
        resolve_dtype("float16", CPU)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(DeviceError, match="unknown dtype 'fp16'"):
        resolve_dtype("fp16", CPU)


def test_free_memory_is_less_than_all_memory() -> None:
    free = free_memory_bytes(CPU)
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert free is not None
    assert 0 < free < total


def a_machine(root: Path, available_kb: int, limit: str, used: int, cache: int) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable:   {available_kb} kB\n")
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\nfile {cache}\nfile_mapped 3\n")
    return root


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 2_000 * 1024), ("1000000", 1_000_000 - 400_000 + 100_000), ("300000", 0)]
)
def test_the_limit_of_a_container_counts(tmp_path: Path, limit: str, free: int) -> None:
    assert free_memory_bytes(CPU, a_machine(tmp_path, 2_000, limit, 400_000, 100_000)) == free


@pytest.mark.parametrize(("limit", "free"), [("unlimited", 2_000 * 1024), ("1000000", 1_000_000 - 900 * 1024)])
def test_the_limit_of_the_process_counts(tmp_path: Path, limit: str, free: int) -> None:
    machine = a_machine(tmp_path, 2_000, "max", 0, 0)
    (machine / "proc/self").mkdir()
    (machine / "proc/self/limits").write_text(
        f"Max cpu time  1  1  s\nMax address space     {limit}   {limit}  bytes\n"
    )
    (machine / "proc/self/status").write_text("Name:\tsdxl\nVmSize:\t     900 kB\n")
    assert free_memory_bytes(CPU, machine) == free


def test_a_system_that_does_not_say_is_no_error(tmp_path: Path) -> None:
    assert free_memory_bytes(CPU, tmp_path) is None


def test_work_that_cannot_fit_is_refused_with_numbers() -> None:
    with pytest.raises(MemoryExhaustedError, match=r"about 1000000\.0 GB are needed, .* GB are free on cpu") as caught:
        require_memory(10**15, CPU, "a large picture", "take a smaller size")
    assert caught.value.hint == "take a smaller size"
    assert caught.value.exit_code == 5


def test_work_that_fits_is_let_through() -> None:
    require_memory(1, CPU, "a small picture", "none")


def test_pytorch_running_out_of_memory_becomes_one_error() -> None:
    with (
        pytest.raises(MemoryExhaustedError, match=r"out of memory while drawing: .* GB are free"),
        memory_guard(CPU, "drawing", "less"),
    ):
        torch.empty(2**52)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_kind_of_running_out_is_told_alike(error: Exception) -> None:
    with pytest.raises(MemoryExhaustedError) as caught, memory_guard(CPU, "drawing", "less"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_through_the_guard() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), memory_guard(CPU, "drawing", "less"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_cuda_computes_in_the_dtype_that_it_is_given_and_the_cpu_leaves_the_process_as_it_is() -> None:
    matmul = torch.backends.cuda.matmul
    reduced = [f"allow_{dtype}_reduced_precision_reduction" for dtype in ("fp16", "bf16")]
    places = [(torch.backends.cudnn, "allow_tf32"), *((matmul, name) for name in ("allow_tf32", *reduced))]
    before = [getattr(place, name) for place, name in places]
    try:
        for place, name in places:
            setattr(place, name, True)
        settle_arithmetic(torch.device("cpu"))
        assert all(getattr(place, name) for place, name in places)
        settle_arithmetic(torch.device("cuda"))
        assert not any(getattr(place, name) for place, name in places)
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)
