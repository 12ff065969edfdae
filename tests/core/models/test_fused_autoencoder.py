"""The first stage for a GPU against the plain one: the same function, whatever its kernels and its doubling are."""

import copy

import pytest
import torch
from support_kernels import add, group_norm, interleave
from support_networks import randn, randomized
from torch import Tensor, nn

from sdxl_core.config import FirstStageConfig
from sdxl_core.models.autoencoder import AutoencoderKL, Upsample
from sdxl_core.models.autoencoder_strips import Pieces, decode_in_pieces, moments_in_pieces
from sdxl_core.models.fused import DecoderPhaseUpsample
from sdxl_core.models.fused_autoencoder import (
    Doubling,
    FirstStageKernels,
    FusedAttnBlock,
    FusedResnetBlock,
    JoinedUpsample,
    fuse_first_stage,
)
from sdxl_core.models.safe_half import carry_small
from sdxl_core.ops.attention import in_query_chunks, sdpa, wide_scores, written_out

CONFIG = FirstStageConfig(ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, norm_groups=8)
LATENT, IMAGE = randn(2, 4, 7, 6, seed=1) / 8, randn(2, 3, 28, 24, seed=2) / 4
PIECES = Pieces(strip_bytes=2**12)
DOUBLINGS = [JoinedUpsample, lambda layer, _: DecoderPhaseUpsample(layer)]


def _softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (scale * scores).softmax(-1).to(dtype)


WRITTEN_OUT = FirstStageKernels(group_norm, add, interleave, _softmax)
"""What the kernels promise, in PyTorch's own words."""


@pytest.fixture
def plain() -> AutoencoderKL:
    return randomized(AutoencoderKL(CONFIG)).double().requires_grad_(False)


def fused(plain: AutoencoderKL, doubling: Doubling = JoinedUpsample) -> AutoencoderKL:
    model = copy.deepcopy(plain)
    for level in model.decoder.up:
        if isinstance(level.upsample, Upsample):
            level.upsample = DecoderPhaseUpsample(level.upsample)
    fuse_first_stage(model, WRITTEN_OUT, doubling)
    return model


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("doubling", DOUBLINGS, ids=["joined", "phases"])
def test_decoding_and_encoding_are_those_of_the_plain_one(plain: AutoencoderKL, doubling: Doubling) -> None:
    ours = fused(plain, doubling)
    # Weights are added in float32.
    assert relative(ours.decode(LATENT.double()), plain.decode(LATENT.double())) < 1e-7
    for mine, theirs in zip(ours.moments(IMAGE.double()), plain.moments(IMAGE.double()), strict=True):
        assert relative(mine, theirs) < 1e-12


def test_working_in_pieces_goes_on(plain: AutoencoderKL) -> None:
    ours = fused(plain)
    latent, image = LATENT.double(), IMAGE.double()
    assert relative(decode_in_pieces(ours, latent, PIECES), plain.decode(latent)) < 1e-7
    for mine, theirs in zip(moments_in_pieces(ours, image, PIECES), plain.moments(image), strict=True):
        assert relative(mine, theirs) < 1e-12


def test_maps_that_are_carried_small_stay_so(plain: AutoencoderKL) -> None:
    carried = copy.deepcopy(plain)
    carry_small(carried)
    assert torch.equal(fused(carried).decode(LATENT.double()), fused(plain).decode(LATENT.double()))


def test_once_more_changes_nothing(plain: AutoencoderKL) -> None:
    ours = fused(plain)
    layers = list(ours.modules())
    fuse_first_stage(ours, WRITTEN_OUT)
    assert [id(layer) for layer in ours.modules()] == [id(layer) for layer in layers]


def test_every_block_and_every_bias_is_fused(plain: AutoencoderKL) -> None:
    ours = fused(plain)
    counts = [sum(isinstance(layer, kind) for layer in ours.modules()) for kind in (FusedResnetBlock, FusedAttnBlock)]
    blocks = CONFIG.num_res_blocks * 3 + (CONFIG.num_res_blocks + 1) * 3 + 2 * 2
    assert counts == [blocks, 2]
    assert not any(isinstance(layer, DecoderPhaseUpsample) for layer in ours.modules())


def test_doubling_that_is_plain_stays_plain(plain: AutoencoderKL) -> None:
    fuse_first_stage(plain, WRITTEN_OUT)
    kinds = {type(layer) for layer in plain.modules() if isinstance(layer, Upsample)}
    assert kinds == {Upsample}


@pytest.mark.parametrize("doubling", DOUBLINGS, ids=["joined", "phases"])
@pytest.mark.parametrize("size", [(2, 1), (1, 5), (4, 3)])
def test_doubling_is_the_same_at_the_edges_too(doubling: Doubling, size: tuple[int, int]) -> None:
    layer = randomized(Upsample(6)).double().requires_grad_(False)
    x = randn(2, 6, *size).double()
    ours = doubling(layer, WRITTEN_OUT)(x.contiguous(memory_format=torch.channels_last))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert float((ours - layer(x)).abs().max()) < 1e-6


def test_another_attention_than_the_usual_one_stays(plain: AutoencoderKL) -> None:
    plain.decoder.mid.attn_1.attention = written_out
    ours = fused(plain)
    assert ours.decoder.mid.attn_1.attention is written_out
    assert ours.encoder.mid.attn_1.attention is not sdpa


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_wide_scores_are_attention(rows: int) -> None:
    q, k, v = (randn(2, 3, n, 8, seed=n).double() for n in (7, 5, 5))
    ours = in_query_chunks(wide_scores, rows * 2 * 3 * 5 * 8)(q, k, v)
    assert relative(ours, sdpa(q, k, v)) < 1e-12


def test_large_scores_keep_their_weights_in_16_bit() -> None:
    """Two scores near 100 that differ by 0.2: 16 bit of their own would make the difference 0 or a half."""
    q, k = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16)
    q[..., :2] = torch.tensor([16.0, 1.0])
    k[..., 0], k[0, 0, 1, 1] = 12.5, 0.40625
    v = torch.eye(2, 4, dtype=torch.bfloat16)[None, None]
    exact = sdpa(q.double(), k.double(), v.double())
    assert float((wide_scores(q, k, v) - exact).abs().max()) < 4e-3
    assert float((written_out(q, k, v) - exact).abs().max()) > 0.02


def test_a_copy_in_float32_runs(plain: AutoencoderKL) -> None:
    half = copy.deepcopy(plain)
    carry_small(half)
    again = copy.deepcopy(fused(half.bfloat16())).float()
    assert relative(again.decode(LATENT), plain.float().decode(LATENT)) < 0.02
    assert not any(
        tensor.dtype is torch.bfloat16 for tensor in nn.ModuleList([again]).state_dict(keep_vars=True).values()
    )
