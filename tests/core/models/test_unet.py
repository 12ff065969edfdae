"""The UNet against diffusers', against the published key lists, and against itself."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from support_diffusers import to_diffusers_unet
from support_networks import BASE, OUTDIM, REFINER, randn, randomized, relative_error
from torch import Tensor

from sdxl_core.config import NetworkConfig
from sdxl_core.models.unet import UNet
from sdxl_core.ops.attention import BACKENDS
from sdxl_core.ops.layers import sinusoid

POOLED = 40
MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"

PUBLISHED = {
    "sd_xl_base_1.0": NetworkConfig(
        model_channels=320,
        channel_mult=(1, 2, 4),
        attention_resolutions=(4, 2),
        transformer_depth=(1, 2, 10),
        context_dim=2048,
        adm_in_channels=2816,
    ),
    "sd_xl_refiner_1.0": NetworkConfig(
        model_channels=384,
        channel_mult=(1, 2, 4, 4),
        attention_resolutions=(4, 2),
        transformer_depth=(4, 4, 4, 4),
        context_dim=1280,
        adm_in_channels=2560,
    ),
}


def vector_of(pooled: Tensor, numbers: Tensor) -> Tensor:
    """What the size embedders make of (b, POOLED) and (b, n)."""
    return torch.cat([pooled, sinusoid(numbers.flatten(), OUTDIM).view(len(numbers), -1)], dim=1)


@torch.no_grad()
def both(config: NetworkConfig, size: tuple[int, int], t: Tensor) -> tuple[Tensor, Tensor]:
    """One call of our network and of diffusers' on the same weights and inputs."""
    b = len(t)
    unet = randomized(UNet(config))
    theirs: UNet2DConditionModel = to_diffusers_unet(unet, config, addition_time_embed_dim=OUTDIM)
    x, crossattn = randn(b, config.in_channels, *size, seed=1), randn(b, 11, config.context_dim, seed=2)
    pooled = randn(b, POOLED, seed=3)
    numbers = randn(b, (config.adm_in_channels - POOLED) // OUTDIM, seed=4).abs() * 500
    reference = theirs(x, t, crossattn, added_cond_kwargs={"text_embeds": pooled, "time_ids": numbers}).sample
    return unet(x, t, crossattn, vector_of(pooled, numbers)), reference


@pytest.mark.parametrize(
    ("config", "size"),
    [
        pytest.param(BASE, (16, 16), id="base"),
        pytest.param(BASE, (8, 24), id="base-wide"),
        pytest.param(BASE, (13, 19), id="base-odd"),
        pytest.param(BASE.model_copy(update={"in_channels": 9}), (16, 8), id="concat"),
        pytest.param(BASE.model_copy(update={"use_linear_in_transformer": False}), (16, 8), id="convolutional"),
        pytest.param(BASE.model_copy(update={"num_res_blocks": 1, "transformer_depth": (0, 1, 2)}), (8, 8), id="micro"),
        pytest.param(REFINER, (16, 16), id="refiner"),
        pytest.param(REFINER, (24, 8), id="refiner-tall"),
    ],
)
def test_equals_diffusers(config: NetworkConfig, size: tuple[int, int]) -> None:
    ours, theirs = both(config, size, torch.tensor([3.0, 961.0]))
    assert relative_error(ours, theirs) <= 1e-5


def test_timestep_between_two_whole_ones_equals_diffusers() -> None:
    ours, theirs = both(BASE, (8, 8), torch.tensor([500.25]))
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    prefix = "model.diffusion_model."
    published = json.loads((MANIFESTS / f"{name}.json").read_text())
    with torch.device("meta"):
        unet = UNet(PUBLISHED[name])
    ours = {prefix + key: list(tensor.shape) for key, tensor in unet.state_dict().items()}
    assert ours == {key: shape for key, shape in published.items() if key.startswith(prefix)}


@torch.no_grad()
def call(unet: UNet, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
    """The network on two fixed pictures, or some of them."""
    x, crossattn, vector = randn(2, 4, 8, 16, seed=1), randn(2, 7, BASE.context_dim, seed=2), randn(2, 136, seed=3)
    t = torch.tensor([17.0, 999.0])
    return unet(x[rows].to(dtype), t[rows], crossattn[rows].to(dtype), vector[rows].to(dtype))


def test_batch_of_two_equals_two_singles() -> None:
    unet = randomized(UNet(BASE)).double()  # so that a kernel's choice of summation order cannot hide a mistake
    singles = torch.cat([call(unet, row, torch.float64) for row in (slice(0, 1), slice(1, 2))])
    assert relative_error(call(unet, dtype=torch.float64), singles) <= 1e-12


@pytest.mark.parametrize("told", range(3))
def test_words_that_are_zeros_need_not_be_there(told: int) -> None:
    unet = randomized(UNet(BASE)).double()
    x, t, vector = randn(2, 4, 8, 16, seed=1).double(), torch.tensor([17.0, 999.0]), randn(2, 136, seed=3).double()
    crossattn = randn(2, 7, BASE.context_dim, seed=2).double()
    crossattn[: 2 - told] = 0
    with torch.no_grad():
        assert relative_error(unet(x, t, crossattn[2 - told :], vector), unet(x, t, crossattn, vector)) <= 1e-12


def test_each_condition_matters() -> None:
    unet = randomized(UNet(BASE))
    x, t = randn(1, 4, 8, 8), torch.tensor([500.0])
    crossattn, vector = randn(1, 7, BASE.context_dim), randn(1, BASE.adm_in_channels)
    with torch.no_grad():
        out = unet(x, t, crossattn, vector)
        others = [
            unet(x, t + 100, crossattn, vector),
            unet(x, t, crossattn.flip(-1), vector),
            unet(x, t, crossattn, vector.flip(-1)),
        ]
    assert all(relative_error(other, out) > 1e-3 for other in others)


def test_channels_last_gives_the_same() -> None:
    unet = randomized(UNet(BASE))
    plain = call(unet)
    assert relative_error(call(unet.to(memory_format=torch.channels_last)), plain) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_half_precision_comes_near(dtype: torch.dtype, bound: float) -> None:
    unet = randomized(UNet(BASE))
    full = call(unet)
    half = call(unet.to(dtype), dtype=dtype)
    assert half.dtype == dtype
    assert relative_error(half, full) <= bound


@pytest.mark.parametrize(
    "name", [n for n, b in BACKENDS.items() if not b.why_not(torch.device("cpu"), torch.float32, 16)]
)
def test_attention_backend_is_the_one_passed_in(name: str) -> None:
    calls = []

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return BACKENDS[name].fn(q, k, v)

    out = call(randomized(UNet(BASE, attention=counted)))
    # Two kinds of attention in: input 2x2 + 2x3, middle 3, output 3x2 + 3x3 blocks.
    assert len(calls) == 2 * (10 + 3 + 15)
    assert {shape[3] for shape in calls} == {BASE.num_head_channels}
    assert relative_error(out, call(randomized(UNet(BASE)))) <= 1e-5


@pytest.mark.parametrize(("channel_mult", "level"), [((1, 3, 4), 1), ((1, 2, 5), 2)])
def test_heads_that_do_not_fit_are_refused(channel_mult: tuple[int, ...], level: int) -> None:
    settings = BASE.model_dump() | {"channel_mult": channel_mult, "num_head_channels": 64}
    width = 32 * channel_mult[level]
    with pytest.raises(ValueError, match=f"num_head_channels 64 does not divide the {width} channels of level {level}"):
        NetworkConfig(**settings)


def test_level_without_attention_may_have_any_width() -> None:
    unet = UNet(NetworkConfig(**(BASE.model_dump() | {"num_head_channels": 64})))
    assert [len(stage) for stage in unet.input_blocks] == [1, 1, 1, 1, 2, 2, 1, 2, 2]


def test_untrained_network_predicts_zero() -> None:
    assert call(UNet(BASE)).abs().max() == 0


def test_every_parameter_gets_a_gradient() -> None:
    unet = randomized(UNet(BASE)).train()
    unet(
        randn(1, 4, 8, 8), torch.tensor([5.0]), randn(1, 7, BASE.context_dim), randn(1, BASE.adm_in_channels)
    ).sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
