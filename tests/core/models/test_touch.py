"""Guidance that reaches into the UNet, against diffusers' hooks and processors on the same weights."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    CrossAttnStoreProcessor,
    StableDiffusionSAGPipeline,
)
from diffusers.pipelines.pag.pag_utils import PAGMixin
from support_diffusers import to_diffusers_unet
from support_networks import BASE, OUTDIM, REFINER, randn, randomized, relative_error
from torch import Tensor

from sdxl_core.config import DenoiserConfig, NetworkConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.guiders import Prompts, build_guider
from sdxl_core.diffusion.touches import _multiplied, scaled_low_frequencies
from sdxl_core.guider_config import FreeUConfig, GuiderConfig, PagConfig, SagConfig, SegConfig
from sdxl_core.models.transformer import SpatialTransformer
from sdxl_core.models.unet import UNet
from sdxl_core.ops.attention import Attention
from sdxl_core.ops.layers import sinusoid
from sdxl_core.types import Conditioning, Touch

POOLED, TOKENS, TIMESTEP, SCALE = 40, 7, 600, 5.0
TOLERANCE = 1e-5
DENOISER = Denoiser(DenoiserConfig())
SIGMA = float(DENOISER.table[TIMESTEP])
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def side(seed: int, rows: int = 1) -> tuple[Conditioning, dict[str, Tensor]]:
    """A conditioning for us, and what diffusers makes the same of."""
    crossattn, pooled = randn(rows, TOKENS, BASE.context_dim, seed=seed), randn(rows, POOLED, seed=seed + 10)
    numbers = randn(rows, 6, seed=seed + 20).abs() * 500
    vector = torch.cat([pooled, sinusoid(numbers.flatten(), OUTDIM).view(rows, -1)], dim=1)
    theirs = {"tokens": crossattn, "text_embeds": pooled, "time_ids": numbers}
    return Conditioning(crossattn, vector), theirs


(COND, THEIR_COND), (UNCOND, THEIR_UNCOND) = side(1), side(2)
X = SIGMA * randn(1, 4, 16, 16, seed=5)


@pytest.fixture
def networks() -> tuple[UNet, UNet2DConditionModel]:
    unet = randomized(UNet(BASE)).requires_grad_(False)
    return unet, to_diffusers_unet(unet, BASE, addition_time_embed_dim=OUTDIM)


def ours(unet: UNet, config: GuiderConfig, x: Tensor = X) -> Tensor:
    """The guided eps."""

    def network(x_in: Tensor, c_noise: Tensor, cond: Conditioning, touch: Touch | None = None) -> Tensor:
        return unet(x_in, c_noise, cond.crossattn, cond.vector, touch)  # type: ignore[no-any-return]

    guider = build_guider(config, [SIGMA, 0.0], BASE)
    prediction = guider.bind(DENOISER, network, Prompts((COND,), uncond=UNCOND))(x, SIGMA)
    return (x - prediction.denoised) / SIGMA


@torch.no_grad()
def theirs(unet: UNet2DConditionModel, *sides: dict[str, Tensor], x: Tensor = X) -> tuple[Tensor, ...]:
    """The eps of each side, in one batch."""
    together = {key: torch.cat([side[key] for side in sides]) for key in sides[0]}
    tokens = together.pop("tokens")
    x_in = torch.cat([x / math.sqrt(SIGMA**2 + 1)] * len(sides))
    return unet(x_in, TIMESTEP, encoder_hidden_states=tokens, added_cond_kwargs=together).sample.chunk(len(sides))


@pytest.mark.parametrize("config", [BASE, REFINER, BASE.model_copy(update={"num_res_blocks": 1})])
def test_a_config_knows_which_stages_attend(config: NetworkConfig) -> None:
    with torch.device("meta"):
        unet = UNet(config)
    attending = [name for name, part in unet.named_modules() if isinstance(part, SpatialTransformer)]
    assert list(config.attended_stages()) == [name.rpartition(".")[0] for name in attending]


def test_a_touch_that_does_nothing_is_as_none(networks: tuple[UNet, UNet2DConditionModel]) -> None:
    def kernel(kernel: Attention, q: Tensor, k: Tensor, v: Tensor, *, size: tuple[int, int]) -> Tensor:
        assert q.shape[2] == size[0] * size[1]
        return kernel(q, k, v)

    unet = networks[0]
    inputs = (X[:, :, :12], torch.tensor([TIMESTEP]), COND.crossattn, COND.vector)
    plain = unet(*inputs)
    for touch in (None, Touch(), Touch(kernel, BASE.attended_stages()), Touch(merge=lambda h, skip: (h, skip))):
        assert torch.equal(unet(*inputs, touch), plain)


class Pag(PAGMixin):
    """diffusers' mixin around a bare network."""

    def __init__(self, unet: UNet2DConditionModel, layers: list[str]) -> None:
        self.unet = unet
        self._pag_scale, self._pag_adaptive_scale = 3.0, 0.0
        self.set_pag_applied_layers(layers)
        self._set_pag_attn_processor(layers, do_classifier_free_guidance=True)


@pytest.mark.parametrize(
    ("stages", "layers"),
    [
        (("middle_block",), ["mid"]),
        (
            ("middle_block", "input_blocks.4", "output_blocks.1"),
            ["mid", r"down_blocks\.1\.attentions\.0", r"up_blocks\.0\.attentions\.1"],
        ),
    ],
)
def test_perturbed_attention_is_diffusers(
    networks: tuple[UNet, UNet2DConditionModel], stages: tuple[str, ...], layers: list[str]
) -> None:
    unet, reference = networks
    pag = Pag(reference, layers)
    outputs = torch.cat(theirs(reference, THEIR_UNCOND, THEIR_COND, THEIR_COND))
    wanted = pag._apply_perturbed_attention_guidance(outputs, True, SCALE, TIMESTEP)
    got = ours(unet, GuiderConfig(scale=SCALE, pag=PagConfig(scale=3.0, stages=stages)))
    assert relative_error(got, wanted) < TOLERANCE
    assert relative_error(got, ours(unet, GuiderConfig(scale=SCALE))) > 0.01


@pytest.mark.parametrize(("blur", "their_blur"), [(None, 1.0), (1e4, 1e4)])
def test_smoothed_energy_is_diffusers_where_the_map_is_square(
    networks: tuple[UNet, UNet2DConditionModel], blur: float | None, their_blur: float
) -> None:
    """diffusers takes the mean of all queries where the blur is finite, and blurs where it passes 9999.9: it meant the
    other way round. So its 1 is our infinite blur, and its 10 000 is a Gaussian as wide as that."""
    unet, reference = networks
    u, c = theirs(reference, THEIR_UNCOND, THEIR_COND)
    blocks = SmoothedEnergyGuidanceConfig(list(range(9)), fqn="mid_block.attentions.0.transformer_blocks")
    _apply_smoothed_energy_guidance_hook(reference, blocks, their_blur)
    (worse,) = theirs(reference, THEIR_COND)
    wanted = u + SCALE * (c - u) + 3.0 * (c - worse)
    got = ours(unet, GuiderConfig(scale=SCALE, seg=SegConfig(scale=3.0, blur=blur)))
    assert relative_error(got, wanted) < TOLERANCE
    assert relative_error(got, ours(unet, GuiderConfig(scale=SCALE))) > 0.01


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@torch.no_grad()
def test_self_attention_guidance_is_diffusers(
    networks: tuple[UNet, UNet2DConditionModel], size: tuple[int, int]
) -> None:
    unet, reference = networks
    x = SIGMA * randn(1, 4, *size, seed=6)
    store = CrossAttnStoreProcessor()
    reference.mid_block.attentions[0].transformer_blocks[0].attn1.processor = store
    u, c = theirs(reference, THEIR_UNCOND, THEIR_COND, x=x)
    heads = BASE.model_channels * BASE.channel_mult[-1] // BASE.num_head_channels
    scheduler = DDIMScheduler(**BETAS)
    pipe: Any = SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(attention_head_dim=heads)), scheduler=scheduler
    )
    t, uncond_maps = torch.tensor(TIMESTEP), store.attention_probs.chunk(2)[0]
    x_vp = x / math.sqrt(SIGMA**2 + 1)
    x0 = StableDiffusionSAGPipeline.pred_x0(pipe, x_vp, u, t)
    map_size = (size[0] // 4, size[1] // 4)
    worse = StableDiffusionSAGPipeline.sag_masking(pipe, x0, uncond_maps, map_size, t, u)
    (again,) = theirs(reference, THEIR_UNCOND, x=worse * math.sqrt(SIGMA**2 + 1))
    wanted = u + SCALE * (c - u) + 0.75 * (u - again)
    got = ours(unet, GuiderConfig(scale=SCALE, sag=SagConfig(scale=0.75, blur=1.0)), x)
    assert relative_error(got, wanted) < TOLERANCE
    assert relative_error(got, ours(unet, GuiderConfig(scale=SCALE), x)) > 1e-3


def test_features_are_merged_where_diffusers_merges_them(networks: tuple[UNet, UNet2DConditionModel]) -> None:
    """diffusers counts levels; the authors of FreeU, and ComfyUI after them, tell stages by their width, and the first
    stage of a level is still as wide as the level below. So diffusers' rule is written here."""
    unet, reference = networks
    stages = iter(range(9))

    def by_level(h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        level = next(stages) // 3
        b, s = {0: (1.3, 0.9), 1: (1.4, 0.2)}.get(level, (1.0, 1.0))
        return _multiplied(h, b), scaled_low_frequencies(skip, s)

    with torch.no_grad():
        (plain,) = theirs(reference, THEIR_COND)
        reference.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
        (wanted,) = theirs(reference, THEIR_COND)
    x_in = X / math.sqrt(SIGMA**2 + 1)
    got = unet(x_in, torch.tensor([float(TIMESTEP)]), COND.crossattn, COND.vector, Touch(merge=by_level))
    assert relative_error(got, wanted) < TOLERANCE
    assert relative_error(got, plain) > 0.01


@pytest.mark.parametrize("version", [1, 2])
def test_freeu_changes_every_call(networks: tuple[UNet, UNet2DConditionModel], version: Any) -> None:
    unet = networks[0]
    config = FreeUConfig(version=version)
    alone = ours(unet, GuiderConfig(name="identity", freeu=config))
    assert relative_error(alone, ours(unet, GuiderConfig(name="identity"))) > 0.01
    nothing = FreeUConfig(version=version, b1=1.0, b2=1.0, s1=1.0, s2=1.0)
    got = ours(unet, GuiderConfig(name="identity", freeu=nothing))
    assert relative_error(got, ours(unet, GuiderConfig(name="identity"))) < TOLERANCE
