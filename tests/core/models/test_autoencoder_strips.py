"""The first stage in pieces is the first stage: at any size, however small the pieces, in little memory."""

import pytest
import torch
from support_memory import LiveBytes
from support_networks import FIRST_STAGE, randn, randomized, relative_error

from sdxl_core.config import FirstStageConfig
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.autoencoder_strips import Pieces, decode_in_pieces, moments_in_pieces

CONFIGS = [
    pytest.param(FirstStageConfig(ch=16, ch_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=8), id="four-levels"),
    pytest.param(
        FirstStageConfig(
            ch=32, ch_mult=(1, 2), num_res_blocks=2, z_channels=2, latent_mean=(0.5, -1.0), latent_std=(2.0, 3.0)
        ),
        id="two-levels",
    ),
    pytest.param(FirstStageConfig(ch=16, ch_mult=(1,), num_res_blocks=1, norm_groups=4), id="one-level"),
]
PIECES = [Pieces(keep, size) for keep, size in ((True, 1), (False, 1), (True, 5000), (False, 9000), (True, 2**30))]


@pytest.mark.parametrize("pieces", PIECES, ids=lambda pieces: f"{pieces.keep_finest}-{pieces.strip_bytes}")
@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_both_ways_equal_the_whole(config: FirstStageConfig, pieces: Pieces) -> None:
    vae = randomized(AutoencoderKL(config)).double()  # a mistake cannot hide behind a kernel's order of summation
    for batch, height, width in ((2, 1, 1), (1, 3, 2), (1, 5, 7)):
        latent = randn(batch, config.z_channels, height, width).double()
        assert relative_error(decode_in_pieces(vae, latent, pieces), vae.decode(latent)) <= 1e-12
        image = randn(batch, 3, height * config.factor, width * config.factor).double()
        for ours, whole in zip(moments_in_pieces(vae, image, pieces), vae.moments(image), strict=True):
            assert relative_error(ours, whole) <= 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@torch.no_grad()
def test_in_the_dtypes_that_are_run(dtype: torch.dtype, bound: float) -> None:
    vae = randomized(AutoencoderKL(FIRST_STAGE)).to(dtype)
    latent = randn(1, 4, 5, 7).to(dtype)
    image = decode_in_pieces(vae, latent, Pieces(strip_bytes=20_000))
    assert image.dtype == dtype
    assert relative_error(image, vae.decode(latent)) <= bound


@torch.no_grad()
def test_a_large_mean_does_not_spoil_the_statistics() -> None:
    """The sums of squares would cancel: here the mean is 300 times the deviation."""
    vae = randomized(AutoencoderKL(FIRST_STAGE))
    vae.decoder.conv_in.bias.add_(300)
    latent = randn(1, 4, 6, 4)
    exact = vae.double().decode(latent.double())
    vae.float()
    ours = relative_error(decode_in_pieces(vae, latent, Pieces(strip_bytes=20_000)), exact)
    assert ours <= 2 * relative_error(vae.decode(latent), exact) <= 1e-2


@torch.no_grad()
def test_the_input_is_unchanged_and_the_store_makes_no_difference() -> None:
    vae, latent = randomized(AutoencoderKL(FIRST_STAGE)), randn(1, 4, 4, 4)
    before = latent.clone()
    here = decode_in_pieces(vae, latent, Pieces(strip_bytes=20_000))
    stored = decode_in_pieces(vae, latent, Pieces(strip_bytes=20_000, store=torch.device("cpu")))
    assert torch.equal(here, stored)
    assert torch.equal(latent, before)


@pytest.mark.parametrize(("keep_finest", "channels"), [(True, 1.0), (False, 0.5)])
@torch.no_grad()
def test_memory_peaks_at_one_map_and_twenty_strips(keep_finest: bool, channels: float) -> None:
    config = FirstStageConfig(ch=32, num_res_blocks=1)
    vae, latent = randomized(AutoencoderKL(config)), randn(1, 4, 16, 16)
    strip_bytes = 2**15  # two rows of the finest level
    with LiveBytes() as whole:
        vae.decode(latent)
    with LiveBytes() as pieces:
        image = decode_in_pieces(vae, latent, Pieces(keep_finest, strip_bytes))
    kept = channels * config.ch * image[0, 0].nbytes
    weights = 6 * vae.decoder.up[1].upsample.conv.weight.nbytes  # as those of a transposed convolution
    assert kept < pieces.peak <= kept + 20 * strip_bytes + 2 * image.nbytes + weights
    assert whole.peak > 3 * pieces.peak
