"""Latents and pictures: the way that fits, the dtype that holds, and nothing that is not finite."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support_card import NAME, PLUGS_IN, plugged_in
from support_diffusers import to_diffusers_vae
from support_memory import LiveBytes
from support_networks import randn, randomized, relative_error
from support_reporter import Recorder
from torch import Tensor

from sdxl_core.config import Decoding, FirstStageConfig
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.errors import MemoryExhaustedError, NumericsError
from sdxl_core.first_stage import LIBRARIES_BYTES, decode_latents, encode_images, least_memory_bytes, pieces_bytes
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.autoencoder_strips import Pieces, decode_in_pieces
from sdxl_core.ops.attention import sdpa

ROOT = Path(__file__).parents[2]
FIRST_STAGE = FirstStageConfig(ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, norm_groups=8)


@pytest.fixture
def vae() -> AutoencoderKL:
    return randomized(AutoencoderKL(FIRST_STAGE)).requires_grad_(False)


class Failing:
    """Attention on a device that is full for the first `times` calls."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.times -= 1
        if self.times >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sdpa(q, k, v)


def short_of_memory(times: int) -> AutoencoderKL:
    return randomized(AutoencoderKL(FIRST_STAGE, attention=Failing(times))).requires_grad_(False)


@pytest.mark.parametrize("decoding", ["whole", "pieces", "auto"])
def test_all_exact_ways_give_one_picture(vae: AutoencoderKL, decoding: Decoding) -> None:
    latents = randn(2, 4, 6, 5) / 8
    pictures = decode_latents(vae, latents, decoding=decoding)
    for picture, latent in zip(pictures, latents, strict=True):
        exact = (vae.decode(latent[None])[0].clamp(-1, 1) + 1) * 127.5
        assert np.abs(picture - exact.permute(1, 2, 0).numpy()).max() <= 0.51


def test_tiles_are_the_whole_where_there_is_one_tile_and_else_nearly(vae: AutoencoderKL) -> None:
    small, large = randn(1, 4, 5, 6) / 8, randn(1, 4, 4, 70) / 8
    assert np.array_equal(decode_latents(vae, small, decoding="tiles"), decode_latents(vae, small, decoding="whole"))
    tiles, whole = (decode_latents(vae, large, decoding=way)[0].astype(int) for way in ("tiles", "whole"))
    assert 0 < np.abs(tiles - whole).mean() < 20


@pytest.mark.parametrize(("times", "told"), [(1, ["in pieces"]), (2, ["in pieces", "without the finest level"])])
def test_what_does_not_fit_is_done_in_pieces_and_said(times: int, told: list[str]) -> None:
    latents, reporter = randn(1, 4, 6, 5) / 8, Recorder()
    picture = decode_latents(short_of_memory(times), latents, reporter=reporter)[0]
    assert np.abs(picture.astype(int) - decode_latents(short_of_memory(0), latents)[0]).max() <= 1
    assert len(reporter.notes) == len(told)
    for note, words in zip(reporter.notes, told, strict=True):
        assert note.startswith("out of memory while decoding a picture")
        assert note.endswith(words)


def test_a_way_that_was_asked_for_is_not_left() -> None:
    for decoding, times in (("whole", 1), ("tiles", 1), ("auto", 3), ("pieces", 2)):
        with pytest.raises(MemoryExhaustedError, match="out of memory while decoding"):
            decode_latents(short_of_memory(times), randn(1, 4, 2, 2), decoding=decoding)  # type: ignore[arg-type]


def test_encoding_falls_back_too() -> None:
    image, reporter = randn(1, 3, 40, 24), Recorder()
    latent = encode_images(short_of_memory(1), image, reporter=reporter)
    assert relative_error(latent, encode_images(short_of_memory(0), image)) < 1e-5
    assert [note.rpartition(": ")[2] for note in reporter.notes] == ["encoding in pieces"]


@pytest.mark.parametrize(("times", "told"), [(1, ["again, without CUDA graphs"]), (2, ["CUDA graphs", "in pieces"])])
def test_room_is_made_before_another_way_is_taken_and_once(times: int, told: list[str]) -> None:
    latents, image = randn(1, 4, 6, 5) / 8, randn(1, 3, 40, 24)
    for run in (
        lambda model, **how: torch.from_numpy(decode_latents(model, latents, **how)[0]).float(),
        lambda model, **how: encode_images(model, image, **how),
    ):
        reporter, held = Recorder(), [True]
        out = run(short_of_memory(times), reporter=reporter, make_room=lambda held=held: bool(held) and held.pop())
        assert relative_error(out, run(short_of_memory(0))) < 1e-2
        assert len(reporter.notes) == len(told)
        assert all(note.endswith(words) for note, words in zip(reporter.notes, told, strict=True))


def test_a_way_that_was_asked_for_is_tried_again_in_the_room_that_was_made() -> None:
    held = [True]
    decode_latents(short_of_memory(1), randn(1, 4, 2, 2), decoding="whole", make_room=lambda: bool(held) and held.pop())
    assert not held


@pytest.mark.slow
def test_memory_that_will_not_do_is_foreseen() -> None:
    """A limit on the process below what the whole takes: told before, not after; the picture is the same."""
    code = """
import resource, sys
sys.path.insert(0, "tests")
import numpy as np, torch
from support_networks import randn, randomized
from support_reporter import Recorder
from sdxl_core.config import FirstStageConfig
from sdxl_core.first_stage import decode_latents
from sdxl_core.models.autoencoder import AutoencoderKL
vae = randomized(AutoencoderKL(FirstStageConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)))
latent = randn(1, 4, 96, 96) / 8
whole = decode_latents(vae, latent)[0]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 270_000_000, resource.RLIM_INFINITY))
reporter = Recorder()
pieces = decode_latents(vae, latent, reporter=reporter)[0]
print(np.abs(whole.astype(int) - pieces).max() <= 1, reporter.notes)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("True ['decoding whole takes about 0.3 GB and 0."), done.stdout + done.stderr


@pytest.mark.parametrize("decoding", ["whole", "tiles"])
def test_estimates_of_memory_hold(vae: AutoencoderKL, decoding: Decoding) -> None:
    latent = randn(1, 4, 24, 24)
    with LiveBytes() as live:
        decode_latents(vae, latent, decoding=decoding)
    assert live.peak <= 1.15 * least_memory_bytes(vae, (192, 192), decoding)


@pytest.mark.skipif(not PLUGS_IN, reason="this PyTorch takes no device from Python")
@pytest.mark.parametrize("store", [None, torch.device("cpu")], ids=["maps on the card", "maps on the host"])
@pytest.mark.parametrize("keep_finest", [True, False])
@torch.inference_mode()
def test_the_estimate_for_pieces_is_what_a_card_holds_of_them(keep_finest: bool, store: torch.device | None) -> None:
    with plugged_in() as card:
        config = FirstStageConfig(ch=16, num_res_blocks=1, norm_groups=8)
        vae, latent = randomized(AutoencoderKL(config)).to(NAME), randn(1, 4, 16, 16).to(NAME)
        before, pieces = card.now, Pieces(keep_finest, strip_bytes=2**16, store=store)
        card.reset()
        decode_in_pieces(vae, latent, pieces)
        estimate = pieces_bytes(vae, (128, 128), pieces) - LIBRARIES_BYTES
        assert 0.45 * estimate < card.peak - before < 0.9 * estimate


def test_half_precision_that_overflows_is_repeated_and_said(vae: AutoencoderKL) -> None:
    """The published first stage does this in float16: its residual stream passes 65504."""
    for way in (vae.decoder, vae.encoder):
        way.mid.block_1.conv2.bias.fill_(60000.0)
        way.mid.block_2.conv2.bias.fill_(60000.0)
    half, latent, image = copy.deepcopy(vae).half(), randn(1, 4, 4, 5), randn(1, 3, 32, 40)
    assert not half.decode(latent.half()).isfinite().all()
    assert not half.encode(image.half()).isfinite().all()
    reporter = Recorder()
    picture = decode_latents(half, latent, reporter=reporter)[0]
    assert np.abs(picture.astype(int) - decode_latents(vae, latent)[0]).max() <= 2
    assert relative_error(encode_images(half, image, reporter=reporter), encode_images(vae, image)) < 1e-2
    assert reporter.notes == [
        "the picture is not finite in float16: decoding again in float32",
        "the latent is not finite in float16: encoding again in float32",
    ]
    assert half.quant_conv.weight.dtype == torch.float16


def test_what_is_never_finite_is_never_returned(vae: AutoencoderKL) -> None:
    with pytest.raises(NumericsError, match="the latent is not finite"):
        decode_latents(vae, torch.full((1, 4, 2, 2), torch.nan))
    vae.decoder.conv_out.bias.fill_(torch.inf)
    vae.encoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(NumericsError, match="the decoded picture is not finite"):
        decode_latents(vae, torch.zeros(1, 4, 2, 2))
    with pytest.raises(NumericsError, match="the encoded latent is not finite"):
        encode_images(vae, torch.zeros(1, 3, 16, 16))
    assert not torch.is_inference_mode_enabled()


def test_a_draw_is_what_diffusers_draws_with_that_generator(vae: AutoencoderKL) -> None:
    images = randn(2, 3, 24, 40)
    noise = PictureNoise([7, 8], (4, 3, 5))
    theirs = to_diffusers_vae(vae, FIRST_STAGE).requires_grad_(False)
    drawn = [
        theirs.encode(image[None]).latent_dist.sample(torch.Generator().manual_seed(seed)) * FIRST_STAGE.scale_factor
        for image, seed in zip(images, (7, 8), strict=True)
    ]
    ours = encode_images(vae, images, noise=noise())
    assert ours.dtype == torch.float32
    assert relative_error(ours, torch.cat(drawn)) <= 1e-5
    assert relative_error(encode_images(vae, images), vae.encode(images)) <= 1e-5


def test_a_draw_is_made_of_float32_moments_in_half_precision(vae: AutoencoderKL) -> None:
    image, noise = randn(1, 3, 16, 16), randn(1, 4, 2, 2, seed=3)
    half = copy.deepcopy(vae).bfloat16()
    mean, logvar = (part.float() for part in half.moments(image.bfloat16()))
    exact = (mean + (0.5 * logvar).exp() * noise) * FIRST_STAGE.scale_factor
    assert relative_error(encode_images(half, image, noise=noise), exact) <= 1e-6
