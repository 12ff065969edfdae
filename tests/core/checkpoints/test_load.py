import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_files import sparse_file
from support_reporter import Recorder
from support_tiny import tiny_config, tiny_tensors, write_tiny_checkpoint
from torch import Tensor, nn

from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.load import CHUNK_BYTES, Part, load_into, load_parts
from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.errors import CheckpointError
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.unet import UNet


class Small(nn.Module):
    """One of everything: a matrix, a convolution, a scalar, an integer buffer, an empty tensor."""

    ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.conv = nn.Conv2d(4, 6, 3, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.none = nn.Parameter(torch.zeros(0, 7), requires_grad=False)
        self.register_buffer("ids", torch.arange(9))


def on_meta() -> Small:
    with torch.device("meta"):
        return Small()


def saved(folder: Path, dtype: torch.dtype, prefix: str = "", **more: Tensor) -> tuple[Path, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for key, value in Small().state_dict().items():
        floating = value.is_floating_point()
        tensors[prefix + key] = torch.randn(value.shape, generator=generator).to(dtype) if floating else value
    path = folder / "x.safetensors"
    save_file({**tensors, **more}, path)
    return path, tensors


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("memory", [torch.float16, torch.bfloat16, torch.float32, None])
@pytest.mark.parametrize("disk", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_on_disk_becomes_every_dtype_in_memory(
    tmp_path: Path, disk: torch.dtype, memory: torch.dtype | None, channels_last: bool
) -> None:
    path, tensors = saved(tmp_path, disk, "part.")
    module = on_meta()
    load_into(module, path, "part.", dtype=memory, channels_last=channels_last)
    for key, value in module.state_dict().items():
        wanted = tensors[f"part.{key}"]
        assert value.dtype == (wanted.dtype if key == "ids" else memory or disk)
        assert torch.equal(value, wanted.to(value.dtype))
    assert module.conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert module.conv.weight.requires_grad
    assert not module.none.requires_grad


@pytest.mark.parametrize("memory", [torch.float32, torch.bfloat16])
def test_tensors_larger_than_the_staging_memory(tmp_path: Path, memory: torch.dtype) -> None:
    rows = CHUNK_BYTES // 4000 * 2 + 3
    weight = torch.arange(rows * 1000, dtype=torch.float32).reshape(rows, 1000)
    kernel = torch.arange(CHUNK_BYTES // 4 + 9 * 64, dtype=torch.float32)[: (CHUNK_BYTES // 4 // 576 + 1) * 576]
    save_file({"a.weight": weight, "b.weight": kernel.reshape(-1, 64, 3, 3)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        module = nn.ModuleDict(
            {"a": nn.Linear(1000, rows, bias=False), "b": nn.Conv2d(64, len(kernel) // 576, 3, bias=False)}
        )
    load_into(module, tmp_path / "x.safetensors", "", dtype=memory, channels_last=True)
    assert torch.equal(module["a"].weight, weight.to(memory))
    assert torch.equal(module["b"].weight, kernel.reshape(-1, 64, 3, 3).to(memory))


def test_a_whole_model_loads_part_by_part(tmp_path: Path) -> None:
    config, wanted = tiny_config(), tiny_tensors()
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors", dtype=torch.float16)
    with torch.device("meta"):
        parts = [
            Part(UNet(config.network), "model.diffusion_model.", torch.bfloat16, channels_last=True),
            Part(AutoencoderKL(config.first_stage), "first_stage_model.", torch.float32),
            Part(Conditioner(config.conditioner), "conditioner."),
        ]
    recorder = Recorder()
    load_parts(read_header(path), parts, reporter=recorder)
    count = 0
    for part in parts:
        for name, value in part.module.state_dict().items():
            assert value.dtype == (part.dtype or torch.float16)
            assert torch.equal(value, wanted[part.prefix + name].half().to(value.dtype))
            count += wanted[part.prefix + name].half().nbytes
    assert recorder.tasks == [["loading tiny.safetensors", count, "B", count, True]]


def test_the_first_stage_loads_from_a_file_of_its_own_with_bare_keys(tmp_path: Path) -> None:
    prefix = "first_stage_model."
    tensors = {key.removeprefix(prefix): t for key, t in tiny_tensors(seed=5).items() if key.startswith(prefix)}
    save_file(tensors, tmp_path / "vae.safetensors")
    with torch.device("meta"):
        first_stage = AutoencoderKL(tiny_config().first_stage)
    load_into(first_stage, tmp_path / "vae.safetensors", "", dtype=torch.float32)
    assert all(torch.equal(value, tensors[key]) for key, value in first_stage.state_dict().items())


def test_keys_that_do_not_fit_are_an_error_and_leave_the_module_alone(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, torch.float16, "part.", **{"part.bogus": torch.zeros(1), "elsewhere": torch.zeros(1)})
    module = on_meta()
    with pytest.raises(CheckpointError, match=r"1 unexpected \(part.bogus\)"):
        load_into(module, path, "part.")
    with pytest.raises(CheckpointError, match="6 missing"):
        load_into(module, path, "other.")
    assert module.linear.weight.is_meta


def test_weights_stored_as_whole_numbers_are_refused(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "x.safetensors", {"weight": (5, 3)}, dtype="I16")
    with torch.device("meta"):
        module = nn.Linear(3, 5, bias=False)
    with pytest.raises(CheckpointError, match="weight is stored as I16"):
        load_into(module, path, "")


def test_a_missing_spare_key_is_filled(tmp_path: Path) -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = nn.Parameter(torch.tensor(1.0))
            self.bias = nn.Parameter(torch.ones(2))

    save_file({"model.bias": torch.ones(2)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        tower = Tower()
    load_into(tower, tmp_path / "x.safetensors", "model.", dtype=torch.float16)
    assert not tower.logit_scale.is_meta
    assert tower.logit_scale.dtype == torch.float16


def test_a_buffer_that_no_file_holds_is_a_bug_that_is_named(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        module = nn.Linear(2, 2)
        module.register_buffer("mask", torch.ones(2), persistent=False)
    with pytest.raises(ValueError, match="mask"):
        load_into(module, tmp_path / "x.safetensors", "")


class Interrupting(Recorder):
    """Ctrl-C, or a shrinking file, in the middle of a load."""

    def __init__(self, action: object) -> None:
        super().__init__()
        self.action = action

    def advance(self, amount: float) -> None:
        super().advance(amount)
        if isinstance(self.action, Path):
            os.truncate(self.action, 100)
        else:
            raise KeyboardInterrupt


def test_an_interrupt_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, torch.float32)
    module, reporter = on_meta(), Interrupting(None)
    with pytest.raises(KeyboardInterrupt):
        load_into(module, path, "", reporter=reporter)
    assert all(value.is_meta for value in module.state_dict().values())
    assert reporter.tasks[-1][4]


def test_a_file_that_shrinks_meanwhile_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, torch.float32)
    with pytest.raises(CheckpointError, match="shrank while it was read"):
        load_into(on_meta(), path, "", reporter=Interrupting(path))


def test_a_file_that_changed_since_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, torch.float32)
    header = read_header(path)
    os.truncate(path, 200)
    with pytest.raises(CheckpointError, match="changed"):
        load_parts(header, [Part(on_meta(), "")])


MEASURE = """
import sys, torch
from torch import nn
from sdxl_core.checkpoints.load import load_into

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

for dtype, channels_last in ((torch.float16, False), (torch.float32, False), (torch.bfloat16, True)):
    with torch.device("meta"):
        module = nn.ModuleDict({f"l{i}": nn.Linear(4096, 4096, bias=False) for i in range(8)})
        module["c"] = nn.Conv2d(1280, 1280, 3, bias=False)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from what is in use now
    before = peak()
    load_into(module, sys.argv[1], "", dtype=dtype, channels_last=channels_last)
    print((peak() - before) / sum(p.nbytes for p in module.parameters()))
    del module
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_memory_peaks_at_the_weights_themselves(tmp_path: Path) -> None:
    shapes = {f"l{i}.weight": (4096, 4096) for i in range(8)} | {"c.weight": (1280, 1280, 3, 3)}
    path = sparse_file(tmp_path / "x.safetensors", shapes)  # 298 MB
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == 3
    assert all(0.9 < ratio < 1.15 for ratio in ratios), ratios


def test_reads_what_safetensors_reads(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, torch.bfloat16)
    module = on_meta()
    load_into(module, path, "")
    reference = load_file(path)
    assert all(torch.equal(value, reference[key]) for key, value in module.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("memory", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_loads_to_a_gpu(tmp_path: Path, memory: torch.dtype, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(9000, 4001, generator=generator).half()  # with the rest more than all stages hold
    kernels = [torch.randn(256, 256, 3, 3, generator=generator).half() for _ in range(40)]
    save_file({"a.weight": weight} | {f"{i}.weight": k for i, k in enumerate(kernels)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        module = nn.ModuleDict({str(i): nn.Conv2d(256, 256, 3, bias=False) for i in range(40)})
        module["a"] = nn.Linear(4001, 9000, bias=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    load_into(module, tmp_path / "x.safetensors", "", dtype=memory, device="cuda", channels_last=channels_last)
    used = sum(p.nbytes for p in module.parameters())
    assert torch.equal(module["a"].weight.cpu(), weight.to(memory))
    assert all(torch.equal(module[str(i)].weight.cpu(), k.to(memory)) for i, k in enumerate(kernels))
    assert torch.cuda.max_memory_allocated() - before < 1.15 * used + 64 * 2**20
