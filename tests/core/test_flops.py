"""The counts of arithmetic against PyTorch's own counter, on the networks themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support_networks import BASE, FIRST_STAGE, REFINER
from support_tiny import tiny_config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.config import ConditionerConfig, FirstStageConfig, ModelConfig, NetworkConfig
from sdxl_core.diffusion.touches import own_values
from sdxl_core.flops import Work, decoder_work, encoder_work, network_work, text_work
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.unet import UNet
from sdxl_core.ops.meta import shapes_only
from sdxl_core.presets import load_preset
from sdxl_core.types import Touch

BY_CONVOLUTION = BASE.model_copy(update={"use_linear_in_transformer": False, "in_channels": 9, "num_res_blocks": 1})

_KINDS = {"mm": "linear", "addmm": "linear", "convolution": "conv", "bmm": "attention"}


@torch.no_grad()
def counted(run: Callable[[], object]) -> Work:
    """What PyTorch counts; attention is written out, since it has no formula for the CPU's kernel."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    found = dict.fromkeys(("linear", "conv", "attention"), 0)
    for operator, flop in counter.get_flop_counts()["Global"].items():
        found[_KINDS[str(operator).removeprefix("aten.")]] += flop
    return Work(**found)


def of_network(unet: UNet, rows: int, height: int, width: int, touch: Touch | None = None) -> Work:
    config = unet.config

    def empty(*shape: int) -> Tensor:
        return torch.zeros(rows, *shape, device=unet.out[2].weight.device)

    x, words, vector = (
        empty(config.in_channels, height, width),
        empty(77, config.context_dim),
        empty(config.adm_in_channels),
    )
    return counted(lambda: unet(x, empty(), words, vector, touch))


def model(name: str) -> ModelConfig:
    return load_preset(name).model


@pytest.mark.parametrize("size", [(16, 8), (13, 22), (9, 5)])
@pytest.mark.parametrize("config", [BASE, REFINER, BY_CONVOLUTION], ids=["base", "refiner", "by-convolution"])
def test_rows_of_the_network(config: NetworkConfig, size: tuple[int, int]) -> None:
    assert network_work(config, size) * 2 == of_network(UNet(config), 2, *size)


@pytest.mark.parametrize("stages", [("middle_block",), ("input_blocks.5", "output_blocks.3", "output_blocks.4")])
def test_perturbed_attention_takes_less(stages: tuple[str, ...]) -> None:
    work = network_work(BASE, (12, 16), own_values=stages)
    assert work == of_network(UNet(BASE), 1, 12, 16, Touch(own_values, stages, None))
    assert work.attention < network_work(BASE, (12, 16)).attention


def test_what_others_counted_for_the_published_networks() -> None:
    base, refiner = model("sdxl-base-1.0"), model("sdxl-refiner-1.0")
    assert network_work(base.network, (128, 128)).total == 6_761_236_398_080
    assert network_work(base.network, (64, 64)).total / 1e12 == pytest.approx(1.589, abs=5e-4)
    assert network_work(refiner.network, (128, 128)).total / 1e12 == pytest.approx(7.286, abs=5e-4)
    assert decoder_work(base.first_stage, (1024, 1024)).total / 1e12 == pytest.approx(10.470, abs=5e-4)
    assert encoder_work(base.first_stage, (1024, 1024)).total / 1e12 == pytest.approx(4.879, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl-base-1.0", "sdxl-refiner-1.0"])
def test_the_published_networks_on_the_meta_device(name: str) -> None:
    config = model(name).network
    with shapes_only():
        unet = UNet(config)
    assert network_work(config, (128, 128)) == of_network(unet, 1, 128, 128)


@pytest.mark.parametrize("config", [FIRST_STAGE, FirstStageConfig(ch_mult=(1, 3), z_channels=16, norm_groups=8)])
@pytest.mark.parametrize("size", [(64, 64), (32, 72)])
def test_the_first_stage_both_ways(config: FirstStageConfig, size: tuple[int, int]) -> None:
    height, width = size
    autoencoder = AutoencoderKL(config)
    latent = torch.zeros(1, config.z_channels, height // config.factor, width // config.factor)
    assert decoder_work(config, size) == counted(lambda: autoencoder.decode(latent))
    assert encoder_work(config, size) == counted(lambda: autoencoder.moments(torch.zeros(1, 3, *size)))


@pytest.mark.parametrize(
    "config", [tiny_config().conditioner, tiny_config("refiner").conditioner], ids=["base", "refiner"]
)
def test_a_prompt_through_every_tower(config: ConditionerConfig) -> None:
    towers: list[Any] = list(Conditioner(config).towers)
    ids = torch.full((1, 77), 5)
    assert text_work(config) == counted(lambda: [tower(ids) for tower in towers])
