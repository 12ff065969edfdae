"""Maps carried small: the same function, and one that float16 holds."""

import copy

import pytest
import torch
from support_networks import randn, randomized
from torch import Tensor

from sdxl_core.config import FirstStageConfig
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.autoencoder_strips import Pieces, decode_in_pieces, moments_in_pieces
from sdxl_core.models.safe_half import FACTOR, carry_small

CONFIG = FirstStageConfig(ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, norm_groups=8)
LATENT, IMAGE = randn(1, 4, 8, 6, seed=1) / 8, randn(1, 3, 32, 24, seed=2) / 4
PIECES = Pieces(strip_bytes=2**12)


@pytest.fixture
def plain() -> AutoencoderKL:
    return randomized(AutoencoderKL(CONFIG)).requires_grad_(False)


def loud(model: AutoencoderKL, times: float) -> AutoencoderKL:
    """With maps between the convolutions as large as in the published weights, and larger."""
    for half in (model.encoder, model.decoder):
        for name, layer in half.named_modules():
            if name.endswith(("conv_in", "conv1", "conv2", "proj_out")):
                layer.weight *= times
                layer.bias *= times
    return model


def answers(model: AutoencoderKL) -> list[Tensor]:
    dtype = model.quant_conv.weight.dtype
    moments = torch.cat(model.moments(IMAGE.to(dtype)), dim=1)
    return [model.decode(LATENT.to(dtype)), moments]


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [FACTOR, 2.0**3])
def test_a_power_of_two_changes_no_bit(plain: AutoencoderKL, dtype: torch.dtype, factor: float) -> None:
    plain = plain.to(dtype)
    carried = copy.deepcopy(plain)
    carry_small(carried, factor)
    for ours, theirs in zip(answers(carried), answers(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_every_map_that_a_norm_reads_is_carried(plain: AutoencoderKL) -> None:
    read: dict[str, list[Tensor]] = {}

    def listen(model: AutoencoderKL) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.GroupNorm):
                layer.register_forward_pre_hook(lambda _, given, name=name: read.setdefault(name, []).append(given[0]))

    carried = copy.deepcopy(plain)
    carry_small(carried)
    listen(plain)
    listen(carried)
    answers(plain)
    answers(carried)
    assert len(read) == sum(isinstance(layer, torch.nn.GroupNorm) for layer in plain.modules())
    for first, second in read.values():
        assert torch.equal(second, first * FACTOR)


def test_strips_are_carried_too(plain: AutoencoderKL) -> None:
    carried = copy.deepcopy(plain)
    carry_small(carried)
    assert torch.equal(decode_in_pieces(carried, LATENT, PIECES), decode_in_pieces(plain, LATENT, PIECES))
    for ours, theirs in zip(
        moments_in_pieces(carried, IMAGE, PIECES), moments_in_pieces(plain, IMAGE, PIECES), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_float16_holds_what_overflows_it_plain(plain: AutoencoderKL) -> None:
    exact = loud(plain.double(), 2.0**15)
    assert not all(answer.isfinite().all() for answer in answers(copy.deepcopy(exact).half()))
    carried = copy.deepcopy(exact)
    carry_small(carried)
    for ours, theirs in zip(answers(carried.half()), answers(exact), strict=True):
        assert relative(ours, theirs) < 3e-3


@pytest.mark.parametrize("times", [2.0**-4, 1.0, 2.0**14])
def test_float16_errs_an_eighth_of_bfloat16(plain: AutoencoderKL, times: float) -> None:
    """Three bits more, at any size that maps have: nothing is lost at the lower end."""
    exact = loud(plain.double(), times)
    carried = copy.deepcopy(exact)
    carry_small(carried)
    wanted = answers(exact)
    fine, coarse = answers(carried.half()), answers(copy.deepcopy(exact).bfloat16())
    for ours, theirs, right in zip(fine, coarse, wanted, strict=True):
        assert 4 < relative(theirs, right) / relative(ours, right) < 16


def test_float32_anew_undoes_nothing(plain: AutoencoderKL) -> None:
    carried = copy.deepcopy(plain)
    carry_small(carried)
    again = copy.deepcopy(carried.half()).float()
    for ours, theirs in zip(answers(again), answers(plain), strict=True):
        assert relative(ours, theirs) < 3e-3
