"""The first stage as it runs on a GPU, at the published widths, against the plain one in float32."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from support_networks import randn, randomized
from support_reporter import Recorder
from torch import Tensor

from sdxl_core.config import FirstStageConfig
from sdxl_core.first_stage import decode_latents, encode_images
from sdxl_core.models.autoencoder import AutoencoderKL, Upsample
from sdxl_core.models.fused import DecoderPhaseUpsample
from sdxl_core.models.fused_autoencoder import FusedNorm, JoinedUpsample
from sdxl_core.models.safe_half import carry_small
from sdxl_core.passes import Beside, apply_first_stage_passes, first_stage_kernels

pytestmark = pytest.mark.gpu

LATENT, IMAGE = randn(1, 4, 32, 24, seed=1) / 8, randn(1, 3, 256, 192, seed=2).clamp(-1, 1)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float32 that is float32, and no memory for gradients."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def plain() -> AutoencoderKL:
    return randomized(AutoencoderKL(FirstStageConfig())).requires_grad_(False).cuda()


def prepared(plain: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    """The first stage beside a network of `dtype`, as `load_first_stage` has it, with all its passes."""
    model = copy.deepcopy(plain)
    if dtype is torch.bfloat16:
        model = model.to(dtype)
    apply_first_stage_passes(model, Beside(torch.device("cuda"), dtype))
    assert isinstance(model.decoder.norm_out, FusedNorm), "a pass cannot be had here"
    return model


def answers(model: AutoencoderKL) -> list[Tensor]:
    own = {"device": "cuda", "dtype": model.quant_conv.weight.dtype}
    return [model.decode(LATENT.to(**own)), torch.cat(model.moments(IMAGE.to(**own)), dim=1)]


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def loud(plain: AutoencoderKL) -> AutoencoderKL:
    """With maps as large between the convolutions as those of the published weights."""
    model = copy.deepcopy(plain)
    carry_small(model, 2.0**15)
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6
    return model


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 5e-3), ("bfloat16", 4e-2), ("float32", 5e-5)])
def test_it_is_the_plain_one_to_rounding(plain: AutoencoderKL, dtype: str, limit: float) -> None:
    model = prepared(plain, getattr(torch, dtype))
    assert model.quant_conv.weight.dtype is getattr(torch, dtype)
    for ours, theirs in zip(answers(model), answers(plain), strict=True):
        assert relative(ours, theirs) < limit
    for ours, again in zip(answers(model), answers(model), strict=True):
        assert torch.equal(ours, again)


def test_float16_errs_less_than_plain_bfloat16(plain: AutoencoderKL) -> None:
    wanted, fine = answers(plain), answers(prepared(plain, torch.float16))
    coarse = answers(copy.deepcopy(plain).bfloat16())
    for ours, theirs, right in zip(fine, coarse, wanted, strict=True):
        assert 4 * relative(ours, right) < relative(theirs, right)


def test_maps_as_large_as_the_published_ones_do_not_overflow(plain: AutoencoderKL) -> None:
    model = loud(plain)
    assert not all(answer.isfinite().all() for answer in answers(copy.deepcopy(model).half()))
    for ours, theirs in zip(answers(prepared(model, torch.float16)), answers(model), strict=True):
        assert relative(ours, theirs) < 5e-3


def test_passes_do_without_one_another(plain: AutoencoderKL) -> None:
    wanted = answers(plain)
    for names in (["safe_half"], ["fused_first_stage"], ["safe_half", "fused_first_stage"]):
        model = copy.deepcopy(plain)
        apply_first_stage_passes(model, Beside(torch.device("cuda"), torch.float16), names)
        for ours, theirs in zip(answers(model), wanted, strict=True):
            assert relative(ours, theirs) < 5e-3


@pytest.mark.parametrize("doubling", [lambda layer: JoinedUpsample(layer, first_stage_kernels()), DecoderPhaseUpsample])
def test_every_doubling_is_the_plain_one(doubling: Callable[[Upsample], Upsample]) -> None:
    layer = randomized(Upsample(512)).requires_grad_(False).cuda()
    x = randn(1, 512, 20, 24).cuda().contiguous(memory_format=torch.channels_last)
    half = doubling(copy.deepcopy(layer).half())(x.half())
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert relative(half, layer(x)) < 1e-3


@pytest.mark.parametrize("decoding", ["whole", "pieces"])
def test_pictures_are_those_of_float32(plain: AutoencoderKL, decoding: str) -> None:
    (ours,) = decode_latents(prepared(plain, torch.float16), LATENT, decoding=decoding)  # type: ignore[arg-type]
    (theirs,) = decode_latents(plain, LATENT)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 4
    assert difference.mean() < 0.5


def test_what_overflows_all_the_same_is_done_again_in_float32(plain: AutoencoderKL) -> None:
    model = copy.deepcopy(plain)
    for way in (model.decoder, model.encoder):
        way.norm_out.bias.fill_(6e4)
        way.conv_out.weight.mul_(16)
    reporter, half = Recorder(), prepared(model, torch.float16)
    decode_latents(half, LATENT, reporter=reporter)
    latent = encode_images(half, IMAGE, reporter=reporter)
    assert latent.isfinite().all()
    assert [note.partition(":")[0] for note in reporter.notes] == [
        "the picture is not finite in float16",
        "the latent is not finite in float16",
    ]
