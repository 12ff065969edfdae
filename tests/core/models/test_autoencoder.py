"""The autoencoder against diffusers', against the published key list, and against itself."""

import json
from pathlib import Path

import pytest
import torch
from support_diffusers import to_diffusers_vae
from support_networks import FIRST_STAGE, randn, randomized, relative_error

from sdxl_core.config import FirstStageConfig
from sdxl_core.models.autoencoder import AutoencoderKL, scale_latent, unscale_latent

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"

CONFIGS = [
    pytest.param(FIRST_STAGE, id="published-shape"),
    pytest.param(FirstStageConfig(ch=16, ch_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=8), id="micro"),
    pytest.param(FirstStageConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=3), id="two-levels"),
]


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_encode_equals_diffusers(config: FirstStageConfig) -> None:
    vae = randomized(AutoencoderKL(config))
    image = randn(2, 3, 64, 40, seed=1)
    theirs = to_diffusers_vae(vae, config).encode(image).latent_dist
    mean, logvar = vae.moments(image)
    assert relative_error(mean, theirs.mean) <= 1e-5
    assert relative_error(logvar, theirs.logvar) <= 1e-5
    assert relative_error(vae.encode(image), theirs.mode() * config.scale_factor) <= 1e-5
    noise = randn(*mean.shape, seed=2)
    assert relative_error(vae.encode(image, noise), (theirs.mean + theirs.std * noise) * config.scale_factor) <= 1e-5


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_decode_equals_diffusers(config: FirstStageConfig) -> None:
    vae = randomized(AutoencoderKL(config))
    latent = randn(2, config.z_channels, 7, 5, seed=1)
    theirs = to_diffusers_vae(vae, config).decode(latent / config.scale_factor).sample
    assert theirs.shape == (2, 3, 7 * config.factor, 5 * config.factor)
    assert relative_error(vae.decode(latent), theirs) <= 1e-5


@torch.no_grad()
def test_statistics_of_the_encodings_are_taken_off_and_put_back_as_diffusers_does() -> None:
    mean, std = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)
    config = FIRST_STAGE.model_copy(update={"scale_factor": 0.5, "latent_mean": mean, "latent_std": std})
    vae = randomized(AutoencoderKL(config))
    # What its SDXL pipeline does with latents_mean and latents_std before it decodes.
    latent = randn(2, 4, 7, 5, seed=1)
    shaped = [torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (std, mean)]
    theirs = to_diffusers_vae(vae, config).decode(latent * shaped[0] / 0.5 + shaped[1]).sample
    assert relative_error(vae.decode(latent), theirs) <= 1e-5
    encoding, _ = vae.moments(randn(2, 3, 64, 40, seed=2))
    torch.testing.assert_close(vae.encode(randn(2, 3, 64, 40, seed=2)), (encoding - shaped[1]) * 0.5 / shaped[0])
    torch.testing.assert_close(unscale_latent(scale_latent(encoding, config), config), encoding, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd_xl_base_1.0", "sd_xl_refiner_1.0"])
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    prefix = "first_stage_model."
    published = json.loads((MANIFESTS / f"{name}.json").read_text())
    with torch.device("meta"):
        vae = AutoencoderKL(FirstStageConfig())
    ours = {prefix + key: list(tensor.shape) for key, tensor in vae.state_dict().items()}
    assert ours == {key: shape for key, shape in published.items() if key.startswith(prefix)}


@torch.no_grad()
def test_log_variance_is_clamped() -> None:
    vae = randomized(AutoencoderKL(FIRST_STAGE))
    z = FIRST_STAGE.z_channels
    vae.quant_conv.bias[z:] = torch.tensor([-1e3, 1e3, -1e3, 1e3])
    _, logvar = vae.moments(randn(1, 3, 16, 16))
    assert logvar[0].amin(dim=(1, 2)).tolist() == [-30, 20, -30, 20]
    assert logvar[0].amax(dim=(1, 2)).tolist() == [-30, 20, -30, 20]


@torch.no_grad()
def test_batch_of_two_equals_two_singles() -> None:
    vae = randomized(AutoencoderKL(FIRST_STAGE)).double()  # a kernel's order of summation cannot hide a mistake
    image, latent = randn(2, 3, 32, 16, seed=1).double(), randn(2, 4, 4, 2, seed=2).double()
    assert relative_error(vae.encode(image), torch.cat([vae.encode(image[:1]), vae.encode(image[1:])])) <= 1e-12
    assert relative_error(vae.decode(latent), torch.cat([vae.decode(latent[:1]), vae.decode(latent[1:])])) <= 1e-12


@torch.no_grad()
def test_channels_last_gives_the_same_and_stays() -> None:
    vae = randomized(AutoencoderKL(FIRST_STAGE))
    latent = randn(1, 4, 4, 6)
    plain = vae.decode(latent)
    fast = vae.to(memory_format=torch.channels_last).decode(latent.to(memory_format=torch.channels_last))
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(fast, plain) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
@torch.no_grad()
def test_half_precision_comes_near(dtype: torch.dtype, bound: float) -> None:
    vae = randomized(AutoencoderKL(FIRST_STAGE))
    latent = randn(1, 4, 4, 4)
    full = vae.decode(latent)
    half = vae.to(dtype).decode(latent.to(dtype))
    assert half.dtype == dtype
    assert relative_error(half, full) <= bound


def test_width_that_32_does_not_divide() -> None:
    vae = AutoencoderKL(FirstStageConfig(ch=16, ch_mult=(1, 3), num_res_blocks=1))
    assert vae.encoder.conv_in.out_channels == 16
    assert vae.decode(vae.encode(randn(1, 3, 8, 8))).shape == (1, 3, 8, 8)


def test_every_parameter_gets_a_gradient() -> None:
    vae = randomized(AutoencoderKL(FIRST_STAGE)).train()
    image = randn(1, 3, 32, 32)
    (vae.decode(vae.encode(image, noise=randn(1, 4, 4, 4))) - image).square().mean().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
