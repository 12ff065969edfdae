"""Every pass against the plain path: the same function to rounding, whatever guidance does inside the network."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from support_kernels import add, gated, group_norm, interleave, join, layer_norm
from support_tiny import CPU_PASSES, CUDA_PASSES, tiny_config, write_tiny_checkpoint
from torch import Tensor, nn

from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import DeviceError
from sdxl_core.guider_config import FreeUConfig, GuiderConfig, PagConfig, SagConfig, SegConfig
from sdxl_core.models import winograd_blocks
from sdxl_core.models.eight_bits import EightBitBlock
from sdxl_core.models.fused import DecoderPhaseUpsample, PhaseUpsample, Remembered, SmallMapNorm, join_text
from sdxl_core.models.fused_transformer import FusedSpatialTransformer, fuse_transformers
from sdxl_core.models.fused_unet import fuse_norms
from sdxl_core.models.network_kernels import NetworkKernels, added_in_place
from sdxl_core.models.transformer import TransformerBlock
from sdxl_core.models.unet import Upsample
from sdxl_core.ops import fp8, winograd
from sdxl_core.ops.fp8 import WRITTEN_OUT, Kernels
from sdxl_core.ops.winograd import WinogradConv2d
from sdxl_core.passes import PASSES, Beside, apply_first_stage_passes, apply_passes
from sdxl_core.pipeline import decode, sample
from sdxl_core.plan import Plan
from sdxl_core.types import Conditioning

Load = Callable[[str], Engine]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("passes") / "tiny.safetensors")
    return lambda dtype: load_engine(tiny_config(), path, device="cpu", dtype=dtype)


def answer(
    engine: Engine,
    rows: int,
    height: int,
    width: int,
    seed: int | None = None,
    *,
    told: int | None = None,
    there: bool = False,
) -> Tensor:
    """What the network says of random inputs; the words of all but the last `told` rows are zeros, perhaps there."""
    draw = torch.Generator().manual_seed(rows * height * width if seed is None else seed)
    network = engine.config.network
    x = torch.randn(rows, 4, height, width, generator=draw)
    cond = Conditioning(
        torch.randn(rows, 77, network.context_dim, generator=draw),
        torch.randn(rows, network.adm_in_channels, generator=draw),
    )
    blank = rows - (rows if told is None else told)
    cond.crossattn[:blank] = 0
    if not there:
        cond = replace(cond, crossattn=cond.crossattn[blank:])
    with torch.inference_mode():
        place = engine.device
        return engine.predict(x.to(place), torch.full((rows,), 500.0, device=place), cond.to(place, engine.dtype)).cpu()


def plan(**changes: object) -> Plan:
    size = (32, 40)  # 4x5 cells, so that upsampling must reach odd sizes too
    given = {"prompt": "a cat", "seed": 1, "steps": 3, "original_size": size, "target_size": size, **changes}
    return Plan.model_validate({"model": "tiny-base", "file": "tiny.safetensors", "size": size, **given})


def latents(engine: Engine, plan: Plan) -> Tensor:
    *_, last = sample(engine, [plan])
    return last.x


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def error(engine: Engine, exact: Engine) -> float:
    """Of a network over calls of several sizes, made one after the other by the same layers."""
    calls = [(2, 8, 8), (1, 8, 8), (2, 4, 12), (3, 9, 5), (2, 8, 8)]
    return math.sqrt(sum(relative(answer(engine, *call), answer(exact, *call)) ** 2 for call in calls) / len(calls))


@pytest.mark.parametrize("names", [*((name,) for name in CPU_PASSES), CPU_PASSES], ids="+".join)
def test_a_pass_is_about_as_near_to_the_exact_function_as_the_plain_path(load: Load, names: tuple[str, ...]) -> None:
    exact = load("float32")
    exact = replace(exact, network=exact.network.double(), dtype=torch.float64)
    for dtype, least in (("float32", 1e-7), ("bfloat16", 1e-3)):
        plain = load(dtype)
        fair = error(plain, exact)
        fast = apply_passes(plain, names)
        assert fast.passes == names
        assert least < fair
        assert error(fast, exact) < 2 * fair


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("told", range(4))
def test_zeros_that_are_left_out_change_nothing(load: Load, told: int, dtype: str) -> None:
    fast, exact = apply_passes(load(dtype)), load("float32")
    bound = 1e-5 if dtype == "float32" else 2 * error(load(dtype), exact)
    assert relative(answer(fast, 3, 8, 8, told=told), answer(exact, 3, 8, 8, told=told, there=True)) < bound


def test_an_empty_negative_is_left_out_and_the_picture_stays(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    predict = Engine.predict

    def watched(self: Engine, x_in: Tensor, c_noise: Tensor, cond: Conditioning, touch: Any = None) -> Tensor:
        told.append((len(cond.crossattn), len(cond.vector)))
        return predict(self, x_in, c_noise, cond, touch)

    monkeypatch.setattr(Engine, "predict", watched)
    plain, fast = load("float32"), apply_passes(load("float32"), ("blank_text",))
    plans = [plan(), plan(prompt="a dog"), plan(negative="blurry")]
    for given, rows in ((plans[:1], (1, 2)), (plans[:2], (2, 4)), (plans, (4, 6)), (plans[::-1], (6, 6))):
        *_, exact = sample(plain, given)
        told.clear()
        *_, last = sample(fast, given)
        assert set(told) == {rows}
        assert relative(last.x, exact.x) < 1e-5


def test_winograd_is_made_of_wide_networks_alone_and_is_the_same_function(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert apply_passes(load("float32"), ("winograd",)).passes == ()
    monkeypatch.setattr(winograd, "PAYING_CHANNELS", 32)
    exact = load("float32")
    exact = replace(exact, network=exact.network.double(), dtype=torch.float64)
    for dtype in ("float32", "bfloat16"):
        fast = apply_passes(load(dtype))
        assert fast.passes == tuple(name for name in PASSES if name not in CUDA_PASSES)
        assert any(isinstance(layer, WinogradConv2d) for layer in fast.network.modules())
        # What doubling keeps for odd sizes is not made larger for it.
        doubling = [layer for layer in fast.network.modules() if isinstance(layer, PhaseUpsample)]
        assert doubling
        assert all(isinstance(layer.phases, WinogradConv2d) for layer in doubling)
        assert not any(isinstance(layer.conv, WinogradConv2d) for layer in doubling)
        assert error(fast, exact) < 2 * error(load(dtype), exact)


def test_norms_of_small_and_large_maps_are_the_plain_ones() -> None:
    plain = nn.GroupNorm(8, 32)
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(-1, 2, 32))
        plain.bias.copy_(torch.linspace(1, -1, 32))
    for dtype, (height, width), bound in (
        (torch.bfloat16, (5, 7), 4e-3),
        (torch.bfloat16, (80, 64), 4e-3),
        (torch.float32, (5, 7), 1e-6),
    ):
        x = torch.randn(2, 32, height, width, generator=torch.Generator().manual_seed(0))
        x = x.to(dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            out = SmallMapNorm(plain.to(dtype))(x)
            exact = nn.functional.group_norm(x.double(), 8, plain.weight.double(), plain.bias.double())
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert relative(out, exact) < bound


GUIDANCE = {
    "pag": PagConfig(),
    "seg": SegConfig(),
    "sag": SagConfig(),
    "freeu": FreeUConfig(),
}


@pytest.mark.parametrize("method", [None, *GUIDANCE])
def test_guidance_reaches_into_the_network_all_the_same(load: Load, method: str | None) -> None:
    plain, fast = load("float32"), apply_passes(load("float32"))
    given = plan(guider=GuiderConfig.model_validate({"scale": 4.0, **({method: GUIDANCE[method]} if method else {})}))
    assert relative(latents(fast, given), latents(plain, given)) < 1e-5


def test_pictures_are_the_same(load: Load) -> None:
    plain, fast = load("float32"), apply_passes(load("float32"))
    x = latents(plain, plan())
    difference = decode(plain, x)[0].astype(int) - decode(fast, x)[0].astype(int)
    assert abs(difference).max() <= 1
    in_pieces = decode(plain, x, decoding="pieces")[0].astype(int) - decode(fast, x, decoding="pieces")[0].astype(int)
    assert abs(in_pieces).max() <= 1


@pytest.mark.parametrize("names", [None, (), ("fused_qkv",), ("phase_upsampling", "packed_weights")])
def test_a_first_stage_alone_gives_the_picture_of_the_engine(load: Load, names: tuple[str, ...] | None) -> None:
    alone, engine = load("bfloat16").first_stage, apply_passes(load("bfloat16"), names)
    apply_first_stage_passes(alone, engine, names)
    x = torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(alone.decode(x.bfloat16()), engine.first_stage.decode(x.bfloat16()))
    assert any(isinstance(layer, DecoderPhaseUpsample) for layer in alone.modules()) == (
        names is None or "phase_upsampling" in names
    )


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", "float16", "float16"),
        ("cuda", "bfloat16", "float32"),
        ("cuda", "float32", "float32"),
        ("cpu", "float32", "float32"),
    ],
)
def test_a_first_stage_is_float16_beside_float16_on_cuda_alone(
    load: Load, device: str, dtype: str, expected: str
) -> None:
    """Its maps are carried small then, and a second model that it serves leaves it as it is."""
    engine = load("float32")
    plain = load("float32").first_stage
    for _ in range(2):
        apply_first_stage_passes(engine.first_stage, Beside(torch.device(device), getattr(torch, dtype)), ["safe_half"])
    assert engine.first_stage_dtype is getattr(torch, expected)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = engine.first_stage.decode(x.to(engine.first_stage_dtype))
        assert relative(ours, plain.decode(x)) < (2e-3 if expected == "float16" else 1e-7)


def test_words_and_sizes_are_read_once_a_run_and_forgotten_with_it(load: Load) -> None:
    engine = apply_passes(load("float32"), ("kept_text", "kept_labels"))
    kept = [module for module in engine.network.modules() if isinstance(module, Remembered)]
    runs: list[int] = []
    for module in kept:
        module.layer.register_forward_hook(lambda *_: runs.append(1))
    latents(engine, plan())
    assert len(runs) == len(kept)
    gc.collect()
    assert all(len(module._answers) == 0 for module in kept)
    latents(engine, plan(prompt="a dog"))
    assert len(runs) == 2 * len(kept)


def test_keys_and_values_of_all_layers_are_parts_of_one_product(load: Load) -> None:
    network = load("float32").network
    layers = [block.attn2 for block in network.modules() if isinstance(block, TransformerBlock)]
    context = torch.randn(2, 7, layers[0].to_k.in_features, generator=torch.Generator().manual_seed(0))
    plain = [(layer.to_k(context), layer.to_v(context)) for layer in layers]
    join_text(layers)
    runs: list[int] = []
    (joined,) = {part.joined for layer in layers for part in (layer.to_k, layer.to_v)}
    joined.layer.register_forward_hook(lambda *_: runs.append(1))
    for layer, (keys, values) in zip(layers, plain, strict=True):
        assert relative(layer.to_k(context), keys) < 1e-6
        assert relative(layer.to_v(context), values) < 1e-6
    assert runs == [1]


def test_what_was_made_stands_in_the_record(load: Load) -> None:
    plain = load("float32")
    assert plain.stamp(plan()).passes == ()
    fast = apply_passes(plain, ("fused_qkv",))
    stamped = fast.stamp(plan())
    assert stamped.passes == ("fused_qkv",)
    assert Plan.from_json(stamped.to_json()) == stamped


@pytest.mark.parametrize("name", sorted(CUDA_PASSES - {"safe_half", "fused_first_stage"}))
def test_what_is_for_a_gpu_needs_one(load: Load, name: str) -> None:
    assert name not in apply_passes(load("float32")).passes
    with pytest.raises(DeviceError, match=f"{name} cannot be made: it needs a CUDA device"):
        apply_passes(load("float32"), (name,))


def test_what_is_approximate_is_made_where_it_is_named_and_only_there() -> None:
    approximate = {name for name, entry in PASSES.items() if entry.approximate}
    assert approximate == {"fp8"}
    for names, expected in [
        (None, PASSES.keys() - approximate),
        (("auto",), PASSES.keys() - approximate),
        (("auto", "fp8"), PASSES.keys()),
        (("fp8", "kept_text"), {"fp8", "kept_text"}),
        ((), set()),
    ]:
        assert {name for name, entry in PASSES.items() if entry.is_among(names)} == expected


def test_auto_beside_names_leaves_out_what_cannot_be_had(load: Load) -> None:
    assert apply_passes(load("float32"), ("auto", "kept_text")).passes == CPU_PASSES
    with pytest.raises(DeviceError, match="fp8 cannot be made"):
        apply_passes(load("float32"), ("auto", "fp8"))


EIGHT_BITS_ERROR = 0.1
"""Of what the tiny network says of 4 rows of 16x20: half as much again as the largest that was found written out."""


def written_out(engine: Engine, kernels: Kernels = WRITTEN_OUT, of_fourth: Kernels | None = None) -> Engine:
    """An engine on the CPU with the network that the pass `fp8` makes on a GPU, its fourth block perhaps otherwise."""
    engine = apply_passes(engine, ("fused_qkv", "kept_text", "kept_labels", "phase_upsampling"))
    engine.network.to(memory_format=torch.channels_last)
    own = NetworkKernels(group_norm, add, interleave, layer_norm, gated, added_in_place, join)
    fuse_norms(engine.network, own)  # type: ignore[arg-type]
    fuse_transformers(engine.network, own)  # type: ignore[arg-type]
    computing = chain([kernels] * 3, [of_fourth or kernels], repeat(kernels))
    for module in engine.network.modules():
        if isinstance(module, FusedSpatialTransformer):
            for i, block in enumerate(module.transformer_blocks):
                module.transformer_blocks[i] = EightBitBlock(block, next(computing))  # type: ignore[arg-type]
    return engine


def test_eight_bits_cost_what_rounding_costs(load: Load) -> None:
    """And no more where products differ by 0.2 %, as a GPU's sums of 14 bits may."""
    draw = torch.Generator().manual_seed(0)

    def summed_in_14_bits(x: Tensor, weight: Tensor, *given: Any) -> Tensor:
        noise = 1 + 0.002 * torch.randn(len(x), len(weight), generator=draw)
        return fp8.linear(x, weight, *given) * noise

    plain = load("float32")
    blank = answer(written_out(load("float32")), 4, 16, 20, told=2)
    assert relative(blank, answer(plain, 4, 16, 20, told=2, there=True)) < EIGHT_BITS_ERROR
    errors: list[float] = []
    for kernels in (WRITTEN_OUT, replace(WRITTEN_OUT, linear=summed_in_14_bits)):
        fast = written_out(load("float32"), kernels)
        errors += [relative(answer(fast, 4, 16, 20, s), answer(plain, 4, 16, 20, s)) for s in (None, 1, 2)]
    assert min(errors) > 0.04
    assert 1.3 * max(errors) < EIGHT_BITS_ERROR


def _without_scale(x: Tensor, weight: Tensor, scale: Tensor, *given: Any) -> Tensor:
    return fp8.linear(x, weight, torch.ones_like(scale), *given)


def _without_weight_scale(x: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return fp8.linear(x, weight, scale, torch.ones_like(weight_scale), dtype)


def _without_late(x: Tensor, *given: Any, delta: Tensor | None, delta_bias: Tensor) -> tuple[Tensor, Tensor]:
    return fp8.norm(x, *given, delta_bias=delta_bias)


def _gate_above_value(x: Tensor, weight: Tensor, bias: Tensor, *scales: float) -> Tensor:
    return fp8.gated(x, weight.roll(len(weight) // 2, 0), bias.roll(len(bias) // 2), *reversed(scales))


@pytest.mark.parametrize(
    "wrong",
    [
        {"linear": _without_scale},
        {"linear": _without_weight_scale},
        {"norm": _without_late},
        {"gated": _gate_above_value},
        {"gated": lambda x, weight, bias, value_scale, gate_scale: fp8.gated(x, weight, bias, value_scale, 1.0)},
        {"gated": lambda x, weight, bias, value_scale, gate_scale: fp8.gated(x, weight, bias, 1.0, gate_scale)},
    ],
    ids=["no scale of x", "no scale of W", "nothing late", "gate above value", "no scale of gates", "nor of values"],
)
def test_what_is_wrong_in_one_block_is_more_than_rounding(load: Load, wrong: dict[str, Any]) -> None:
    """The fourth block is the second of a map, to which the first leaves something to add."""
    spoilt = written_out(load("float32"), of_fourth=replace(WRITTEN_OUT, **wrong))
    assert relative(answer(spoilt, 4, 16, 20), answer(load("float32"), 4, 16, 20)) > 1.3 * EIGHT_BITS_ERROR


@pytest.mark.gpu
def test_eight_bits_stay_near_and_hold_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors")

    def loaded(dtype: str) -> Engine:
        return load_engine(tiny_config(), path, device="cuda", dtype=dtype)

    with pytest.raises(DeviceError, match="without fused_transformer"):
        apply_passes(loaded("float16"), ("fp8",))
    with pytest.raises(DeviceError, match="no layer that is large enough"):
        apply_passes(loaded("float16"), ("auto", "fp8"))
    monkeypatch.setattr("sdxl_core.passes.EIGHT_BIT_WIDTH", 1)
    fast = apply_passes(loaded("float16"), ("auto", "fp8"))
    assert "fp8" in fast.passes
    exact = answer(loaded("float32"), 4, 16, 20)
    near = relative(answer(apply_passes(loaded("float16")), 4, 16, 20), exact)
    assert near < relative(answer(fast, 4, 16, 20), exact) < EIGHT_BITS_ERROR


@pytest.mark.gpu
@pytest.mark.parametrize("method", [None, *GUIDANCE])
def test_all_passes_on_a_gpu_are_as_near_to_float32_as_none(tmp_path: Path, method: str | None) -> None:
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors")

    def loaded(dtype: str) -> Engine:
        return load_engine(tiny_config(), path, device="cuda", dtype=dtype)

    guided = {"scale": 4.0, **({method: GUIDANCE[method]} if method else {})}
    given = plan(guider=GuiderConfig.model_validate(guided))
    fast = apply_passes(loaded("float16"))
    assert {"channels_last", "fused_norms", "fused_transformer", "cuda_graph"} <= set(fast.passes)
    exact = latents(loaded("float32"), given)
    assert relative(latents(fast, given), exact) < 1.5 * relative(latents(loaded("float16"), given), exact)


@pytest.mark.gpu
def test_winograd_on_a_hopper_gpu_is_the_same_function_recorded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd_blocks, "PAYING_CHANNELS", 32)
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors")
    exact, plain, fast = (
        load_engine(tiny_config(), path, device="cuda", dtype=dtype) for dtype in ("float32", "float16", "float16")
    )
    exact = replace(exact, network=exact.network.double(), dtype=torch.float64)
    fast = apply_passes(fast)
    assert "cuda_graph" in fast.passes
    assert ("winograd" in fast.passes) == (torch.cuda.get_device_capability()[0] == 9)
    assert error(fast, exact) < 2 * error(plain, exact)


def test_a_pass_that_cannot_be_had_is_left_out_or_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert "packed_weights" not in apply_passes(load("float32")).passes
    with pytest.raises(DeviceError, match="packed_weights cannot be made: this PyTorch was built without oneDNN"):
        apply_passes(load("float32"), ("packed_weights",))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubling_by_phases_keeps_the_layout_of_the_map(memory_format: torch.memory_format) -> None:
    plain = Upsample(6).to(memory_format=memory_format)
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    with torch.inference_mode():
        doubled, wanted = PhaseUpsample(plain)(x, torch.Size((10, 8))), plain(x, torch.Size((10, 8)))
    assert doubled.is_contiguous(memory_format=memory_format)
    assert relative(doubled, wanted) < 1e-6
