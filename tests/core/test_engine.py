import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_reporter import Recorder
from support_tiny import tiny_config, tiny_tensors, write_tiny_checkpoint
from torch import Tensor, nn

from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import CheckpointError, DeviceError, MemoryExhaustedError
from sdxl_core.models.unet import UNet
from sdxl_core.ops.meta import shapes_only
from sdxl_core.plan import Plan
from sdxl_core.types import Conditioning

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return tiny_tensors()


def weights(engine: Engine) -> dict[str, Tensor]:
    """Every tensor of an engine under its name in the file."""
    parts: Mapping[str, nn.Module] = {
        "model.diffusion_model.": engine.network,
        "first_stage_model.": engine.first_stage,
        "conditioner.": engine.conditioner,
    }
    return {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}


def save(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), path)
    return path


def a_call(rows: int = 2, size: int = 8) -> tuple[Tensor, Tensor, Conditioning]:
    draw = torch.Generator().manual_seed(0)
    network = CONFIG.network
    cond = Conditioning(
        torch.randn(rows, 77, network.context_dim, generator=draw),
        torch.randn(rows, network.adm_in_channels, generator=draw),
    )
    return torch.randn(rows, 4, size, size, generator=draw), torch.full((rows,), 500.0), cond


def test_every_weight_of_the_file_arrives_unchanged(engine: Engine, tensors: dict[str, Tensor]) -> None:
    loaded = weights(engine)
    assert set(tensors) - set(loaded) == {"conditioner.embedders.0.transformer.text_model.embeddings.position_ids"}
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.items())


def test_an_engine_is_ready_to_run_and_not_to_train(engine: Engine) -> None:
    assert (engine.device, engine.dtype, engine.first_stage_dtype) == (
        torch.device("cpu"),
        torch.float32,
        torch.float32,
    )
    for part in (engine.network, engine.conditioner, engine.first_stage):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_bfloat16_weights_are_the_rounded_ones(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    loaded = weights(load_engine(CONFIG, checkpoint, device="cpu", dtype="bfloat16"))
    assert all(torch.equal(value, tensors[key].bfloat16()) for key, value in loaded.items())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_file_of_half_size_is_widened(tmp_path: Path, stored: torch.dtype, tensors: dict[str, Tensor]) -> None:
    path = write_tiny_checkpoint(tmp_path / "half.safetensors", dtype=stored)
    loaded = weights(load_engine(CONFIG, path, device="cpu", dtype="float32"))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(loaded[key], tensors[key].to(stored).float())


def test_the_refiner_loads_too(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "refiner.safetensors", "refiner")
    assert load_engine(tiny_config("refiner"), path, device="cpu", dtype="float32").config.kind == "refiner"


def test_a_refiner_is_no_base(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "refiner.safetensors", "refiner")
    with pytest.raises(CheckpointError, match="refiner"):
        load_engine(CONFIG, path, device="cpu")


def test_wrong_tensors_are_counted_and_named_before_anything_is_read(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    broken = dict(tensors)
    del broken["conditioner.embedders.1.model.ln_final.bias"]
    broken["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    broken["first_stage_model.surprise"] = torch.zeros(1)
    reporter = Recorder()
    with pytest.raises(CheckpointError) as caught:
        load_engine(CONFIG, save(tmp_path / "broken.safetensors", broken), device="cpu", reporter=reporter)
    assert "1 missing (conditioner.embedders.1.model.ln_final.bias)" in caught.value.message
    assert "1 unexpected (first_stage_model.surprise)" in caught.value.message
    assert "out.2.bias [5] instead of [4]" in caught.value.message
    assert reporter.tasks == []


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_another_first_stage_replaces_the_one_in_the_file(tmp_path: Path, checkpoint: Path, prefix: str) -> None:
    other = {k: v for k, v in tiny_tensors(seed=7).items() if k.startswith("first_stage_model.")}
    vae = save(
        tmp_path / "vae.safetensors", {prefix + k.removeprefix("first_stage_model."): v for k, v in other.items()}
    )
    reporter = Recorder()
    engine = load_engine(CONFIG, checkpoint, vae_path=vae, device="cpu", dtype="float32", reporter=reporter)
    loaded = weights(engine)
    assert all(torch.equal(loaded[key], value) for key, value in other.items())
    assert [task[0] for task in reporter.tasks] == ["loading tiny.safetensors", "loading vae.safetensors"]


def test_a_model_without_a_first_stage_needs_one(tmp_path: Path, tensors: dict[str, Tensor], checkpoint: Path) -> None:
    bare = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    path = save(tmp_path / "bare.safetensors", bare)
    with pytest.raises(CheckpointError, match="first_stage_model"):
        load_engine(CONFIG, path, device="cpu")
    engine = load_engine(CONFIG, path, vae_path=checkpoint, device="cpu", dtype="float32")
    assert torch.equal(engine.first_stage.quant_conv.weight, tensors["first_stage_model.quant_conv.weight"])


def test_a_broken_first_stage_is_found_before_the_model_is_read(tmp_path: Path, checkpoint: Path) -> None:
    vae = tmp_path / "vae.safetensors"
    vae.write_bytes(b"")
    reporter = Recorder()
    with pytest.raises(CheckpointError):
        load_engine(CONFIG, checkpoint, vae_path=vae, device="cpu", reporter=reporter)
    assert reporter.tasks == []


def test_the_reporter_hears_of_every_byte_of_weights(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    reporter = Recorder()
    load_engine(CONFIG, checkpoint, device="cpu", dtype="bfloat16", reporter=reporter)
    total = sum(tensor.nbytes for key, tensor in tensors.items() if not key.endswith("position_ids"))
    assert reporter.tasks == [["loading tiny.safetensors", total, "B", total, True]]


def test_a_model_larger_than_memory_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """The file is all holes: a header that promises some 600 GB, and no bytes on disk behind it."""
    network = CONFIG.network.model_copy(update={"model_channels": 32 * 600, "num_head_channels": 16 * 600})
    huge = CONFIG.model_copy(update={"network": network})
    small = tiny_tensors()
    with shapes_only():
        unet = UNet(network)
    shapes = {k: tuple(v.shape) for k, v in small.items() if not k.startswith("model.diffusion_model.")}
    shapes |= {f"model.diffusion_model.{k}": tuple(v.shape) for k, v in unet.state_dict().items()}
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    with pytest.raises(MemoryExhaustedError, match=r"weights of tiny-base in float32: about \d+\.\d GB are needed"):
        load_engine(huge, path, device="cpu", dtype="float32")


def test_device_and_dtype_are_refused_before_the_file_is_looked_at(tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(DeviceError, match="float16 cannot be used on the CPU"):
        load_engine(CONFIG, missing, device="cpu", dtype="float16")
    with pytest.raises(DeviceError, match="unknown device"):
        load_engine(CONFIG, missing, device="tpu")
    with pytest.raises(CheckpointError, match="no such file"):
        load_engine(CONFIG, missing, device="cpu")


def test_an_attention_backend_is_taken_by_name(checkpoint: Path, engine: Engine) -> None:
    plain = load_engine(CONFIG, checkpoint, device="cpu", dtype="float32", attention="math")
    assert plain.attention == "math"
    x, t, cond = a_call()
    torch.testing.assert_close(plain.predict(x, t, cond), engine.predict(x, t, cond), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "message"), [("fast", "unknown attention"), ("cudnn", "needs a CUDA device")])
def test_an_attention_backend_that_cannot_be_had_is_refused(checkpoint: Path, name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        load_engine(CONFIG, checkpoint, device="cpu", attention=name)


def test_predict_is_the_network_itself_in_float32(engine: Engine) -> None:
    x, t, cond = a_call()
    assert torch.equal(engine.predict(x, t, cond), engine.network(x, t, cond.crossattn, cond.vector))


def test_half_precision_stays_inside_the_network(checkpoint: Path, engine: Engine) -> None:
    half = load_engine(CONFIG, checkpoint, device="cpu", dtype="bfloat16")
    x, t, cond = a_call(size=32)
    exact, rounded = engine.predict(x, t, cond), half.predict(x, t, cond)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()  # rounding the weights alone gives 0.01
    # 999 and 998.5 are one number in bfloat16.
    late, later = (half.predict(x, torch.full((2,), level), cond) for level in (998.5, 999.0))
    assert not torch.equal(late, later)


def test_a_stamped_plan_says_what_ran(engine: Engine) -> None:
    plan = Plan(model="m", file="f", prompt="p", seed=0, size=(8, 8), original_size=(8, 8), target_size=(8, 8), steps=1)
    stamped = engine.stamp(plan)
    assert (stamped.device, stamped.dtype, stamped.attention) == ("cpu", "float32", "sdpa")
    assert Plan.from_json(stamped.to_json()) == stamped


def test_the_way_to_the_first_picture_leaves_the_compiler_out(checkpoint: Path) -> None:
    """PyTorch's compiler and the reference libraries take seconds to import; nothing on this way needs them."""
    code = f"""
import sys
sys.path.insert(0, "tests")
from support_tiny import tiny_config
from sdxl_core import Plan, decode, load_engine, sample
engine = load_engine(tiny_config(), {str(checkpoint)!r}, device="cpu")
size = dict(size=(16, 16), original_size=(16, 16), target_size=(16, 16))
*_, last = sample(engine, [Plan(model="m", file="f", prompt="a cat", seed=0, steps=2, **size)])
decode(engine, last.x)
print(*(m for m in ("torch._dynamo", "sympy", "transformers", "open_clip", "torchvision") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
