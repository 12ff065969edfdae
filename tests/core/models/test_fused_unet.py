"""The UNet's blocks for a GPU against the plain ones: the same function, whatever their kernels are."""

import copy
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from support_kernels import (
    add,
    doubled,
    doubling_sums,
    gated,
    group_norm,
    interleave,
    join,
    layer_norm,
    normed_sums,
    outputs,
)
from support_networks import BASE, REFINER, randn, randomized
from torch import Tensor, nn

from sdxl_core.config import NetworkConfig
from sdxl_core.devices import settle_arithmetic
from sdxl_core.diffusion.touches import own_values
from sdxl_core.models import winograd_blocks
from sdxl_core.models.fused import FusedSelfAttention, PhaseUpsample, Remembered
from sdxl_core.models.fused_transformer import FusedGEGLU, fuse_transformers
from sdxl_core.models.fused_unet import DoublingUpsample, fuse_norms
from sdxl_core.models.network_kernels import Gated, NetworkKernels, added_in_place
from sdxl_core.models.transformer import GEGLU, TransformerBlock
from sdxl_core.models.unet import ResBlock, UNet, Upsample
from sdxl_core.models.winograd_blocks import (
    SummedConv,
    SummedDoubling,
    WinogradKernels,
    gains_by_sums,
    sum_convolutions,
)
from sdxl_core.ops.woven import unweave
from sdxl_core.types import Touch

WRITTEN_OUT = NetworkKernels(group_norm, add, interleave, layer_norm, gated, added_in_place, join)
"""What the kernels promise, in PyTorch's own words."""


def plain(config: NetworkConfig) -> UNet:
    return randomized(UNet(config)).double().requires_grad_(False)


def fused(network: UNet, kernels: NetworkKernels = WRITTEN_OUT, *, norms: bool = True, blocks: bool = True) -> UNet:
    made = copy.deepcopy(network).to(memory_format=torch.channels_last)
    if norms:
        fuse_norms(made, kernels)
    if blocks:
        fuse_transformers(made, kernels)
    return made


def with_phases(network: UNet) -> UNet:
    made = copy.deepcopy(network)
    for stage in made.output_blocks:
        if isinstance(stage[-1], Upsample):
            stage[-1] = PhaseUpsample(stage[-1])
    return made


def call(config: NetworkConfig, rows: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, ...]:
    return (
        randn(rows, config.in_channels, height, width, seed=1).double(),
        torch.linspace(900.0, 3.0, rows),
        randn(rows, 7, config.context_dim, seed=2).double(),
        randn(rows, config.adm_in_channels, seed=3).double(),
    )


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


CASES = {
    "base": (BASE, True, True),
    "norms alone": (BASE, True, False),
    "transformers alone": (BASE, False, True),
    "refiner": (REFINER, True, True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_network_is_the_plain_one_at_every_size(case: str) -> None:
    config, norms, blocks = CASES[case]
    network = plain(config)
    ours = fused(network, norms=norms, blocks=blocks)
    with torch.inference_mode():
        for rows, height, width in ((2, 8, 8), (1, 9, 5)):
            given = call(config, rows, height, width)
            assert relative(ours(*given), network(*given)) < 1e-12


@pytest.mark.parametrize("told", range(4))
@pytest.mark.parametrize("case", ["base", "transformers alone"])
def test_words_that_are_zeros_need_not_be_there(case: str, told: int) -> None:
    config, norms, blocks = CASES[case]
    network = plain(config)
    ours = fused(network, norms=norms, blocks=blocks)
    x, t, words, vector = call(config, 3)
    words[: 3 - told] = 0
    with torch.inference_mode():
        assert relative(ours(x, t, words[3 - told :], vector), network(x, t, words, vector)) < 1e-12


@pytest.mark.parametrize(
    ("config", "paying"),
    [*((BASE, paying) for paying in (32, 64, 1000)), (REFINER, 32), (BASE.model_copy(update={"in_channels": 9}), 64)],
)
def test_winograds_products_are_the_convolutions(
    config: NetworkConfig, paying: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd_blocks, "PAYING_CHANNELS", paying)
    network = plain(config)
    blocks = [layer for layer in network.modules() if isinstance(layer, ResBlock)]
    convs = [conv for block in blocks for conv in (block.in_layers[2], block.out_layers[3])]
    made = sum(min(conv.weight.shape[:2]) >= paying for conv in convs)
    assert (made == 0) == (paying == 1000)
    assert not gains_by_sums(network)  # its blocks are not fused
    ours = fused(with_phases(network))
    assert gains_by_sums(ours) == (made > 0)
    sum_convolutions(ours, WinogradKernels(normed_sums, outputs, doubling_sums, doubled))
    assert not gains_by_sums(ours)
    assert sum(isinstance(layer, SummedConv) for layer in ours.modules()) == made
    assert any(isinstance(layer, SummedDoubling) for layer in ours.modules()) == (made > 0)
    with torch.inference_mode():
        for rows, height, width in ((2, 8, 8), (1, 9, 5)):
            given = call(config, rows, height, width)
            assert relative(ours(*given), network(*given)) < (1e-12 if made else 1e-7)  # phases are float32


@pytest.mark.parametrize("most", [1, 2**18])
def test_sums_of_many_images_are_made_of_some_at_a_time(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_blocks, "PAYING_CHANNELS", 32)
    monkeypatch.setattr(winograd_blocks, "MOST_BYTES", most)
    counts: set[int] = set()

    def within(sums: Tensor, images: int) -> Tensor:
        assert sums.nbytes <= most or images == 1
        counts.add(images)
        return sums

    def few_normed_sums(x: Tensor, *given: Any, shift: Tensor | None = None) -> Tensor:
        assert shift is None or len(shift) == len(x)
        return within(normed_sums(x, *given, shift=shift), len(x))

    network = plain(BASE)
    ours = fused(with_phases(network))
    kernels = WinogradKernels(few_normed_sums, outputs, lambda x: within(doubling_sums(x), len(x)), doubled)
    sum_convolutions(ours, kernels)
    given = call(BASE, 5)
    with torch.inference_mode():
        assert relative(ours(*given), network(*given)) < 1e-7  # weights behind doubling are float32
    assert counts == ({1} if most == 1 else {1, 2, 3, 5})


def test_doubling_is_the_plain_one_and_other_sizes_are_too() -> None:
    network = plain(BASE)
    ours = with_phases(network).to(memory_format=torch.channels_last)
    fuse_norms(ours, WRITTEN_OUT)
    kinds = [layer for layer in ours.modules() if isinstance(layer, DoublingUpsample)]
    assert len(kinds) == 2
    assert not any(isinstance(layer, PhaseUpsample) for layer in ours.modules())
    with torch.inference_mode():
        for height, width in ((8, 8), (9, 6)):
            given = call(BASE, 2, height, width)
            # Weights are added in float32.
            assert relative(ours(*given), network(*given)) < 1e-7


@pytest.mark.parametrize("summed", [False, True])
def test_guidance_and_other_passes_reach_into_it_all_the_same(summed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_blocks, "PAYING_CHANNELS", 32)
    network = plain(BASE)
    ours = copy.deepcopy(network)
    for block in ours.modules():
        if isinstance(block, TransformerBlock):
            block.attn1 = FusedSelfAttention(block.attn1)
            block.attn2.to_k = Remembered(block.attn2.to_k)
    ours = fused(ours)
    if summed:
        sum_convolutions(ours, WinogradKernels(normed_sums, outputs, doubling_sums, doubled))
    swapped = Touch(own_values, ("middle_block", "output_blocks.1"), merge=lambda h, skip: (h * 1.1, skip * 0.9))
    given = call(BASE)
    with torch.inference_mode():
        touched, exact = ours(*given, swapped), network(*given, swapped)
        assert relative(touched, exact) < 1e-12
        assert relative(network(*given), exact) > 1e-3


def test_blocks_of_another_kind_stay_in_a_fused_transformer() -> None:
    class Other(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *given: object) -> object:
            return self.block(*given)

    network = plain(BASE)
    ours = copy.deepcopy(network)
    middle = ours.middle_block[1]
    middle.transformer_blocks = nn.ModuleList(Other(block) for block in middle.transformer_blocks)
    given = call(BASE)
    with torch.inference_mode():
        assert relative(fused(ours)(*given), network(*given)) < 1e-12


def test_the_parameters_keep_their_names_and_values() -> None:
    network = plain(BASE)
    ours = fused(network).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in network.state_dict().items())


def test_woven_gates_are_the_plain_ones_and_keep_their_memory() -> None:
    def woven(weight: Tensor) -> Gated | None:
        return gated_woven if len(weight) > 600 else None

    def gated_woven(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gated(rows, unweave(weight), bias)

    network = plain(BASE)
    ours = copy.deepcopy(network).to(memory_format=torch.channels_last)
    weights = {layer.proj.weight for layer in ours.modules() if isinstance(layer, GEGLU)}
    fuse_transformers(ours, replace(WRITTEN_OUT, woven=woven))
    layers = [layer for layer in ours.modules() if isinstance(layer, FusedGEGLU)]
    assert {layer.woven for layer in layers} == {True, False}
    assert {layer.proj.weight for layer in layers} == weights
    given = call(BASE)
    with torch.inference_mode():
        assert relative(ours(*given), network(*given)) < 1e-12
    exact = dict(network.named_modules())
    for name, layer in ours.named_modules():
        if isinstance(layer, FusedGEGLU):
            assert torch.equal(layer.plain_weight(), exact[name].proj.weight)
            assert torch.equal(layer.proj.weight, exact[name].proj.weight) != layer.woven


def test_the_embedding_is_multiplied_once_a_call_and_kept_no_longer() -> None:
    ours = fused(plain(BASE))
    runs: list[int] = []
    ours.shifts.joined.layer.register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        for _ in range(2):
            ours(*call(BASE))
    assert len(runs) == 2
    assert len(ours.shifts.joined._answers) == 0


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MINIMAL = BASE.model_copy(update={"channel_mult": (1, 2), "num_res_blocks": 1, "transformer_depth": (0, 1)})
PUBLISHED_WIDTHS = NetworkConfig(
    model_channels=320,
    channel_mult=(1, 2, 4),
    num_res_blocks=1,
    attention_resolutions=(4, 2),
    transformer_depth=(0, 1, 2),
    num_head_channels=64,
    context_dim=2048,
    adm_in_channels=2816,
)
ON_GPU = [
    *((BASE, "float16"), (REFINER, "float16"), (REFINER, "bfloat16"), (PUBLISHED_WIDTHS, "float16")),
    *((PUBLISHED_WIDTHS, "bfloat16"), (BASE, "float32")),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "name"), [(MINIMAL, "float32")] if INTERPRETED else ON_GPU)
def test_kernels_are_as_near_to_the_exact_function_as_the_plain_path(
    config: NetworkConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from sdxl_core.passes import network_kernels, winograd_kernels

    monkeypatch.setattr(winograd_blocks, "PAYING_CHANNELS", 32)
    device, dtype = "cpu" if INTERPRETED else "cuda", getattr(torch, name)
    settle_arithmetic(torch.device(device))
    with torch.device(device):
        network = UNet(config).requires_grad_(False).eval()
    draw = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=draw, device=device).mul_(scale).to(dtype).float()
    given = [part.float().to(device) for part in call(config, 2, 4 if INTERPRETED else 24, 4 if INTERPRETED else 20)]
    x, t, crossattn, vector = (part.to(dtype).float() for part in given)
    with torch.inference_mode():
        exact = network.double()(x.double(), t, crossattn.double(), vector.double())
        network.to(dtype)
        half = x.to(dtype), t, crossattn.to(dtype), vector.to(dtype)
        fair = relative(network(*half), exact)
        made = fused(with_phases(network), network_kernels())
        ours = made(*half)
        sum_convolutions(made, winograd_kernels())
        by_sums = made(*half)
    # In float32 the GPU's quick roots, quotients and exponentials, each right to two units in the last place, do count.
    assert relative(ours, exact) < (2 if dtype is torch.float32 else 1.2) * fair
    assert relative(by_sums, exact) < (2 if dtype is torch.float32 else 1.3) * fair
