"""The first stage strip by strip: what `AutoencoderKL` gives, to rounding, in a small part of its memory.

The blocks are walked one after the other, and only the map between two of them is kept; within a block, strips go
through all layers at once. The group norm amid a block needs its statistics first, so the block's first convolution is
computed twice. Where even the map of the finest level is too much, that level is not kept at all: it is begun anew from
the level below for each of its norms.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller

import torch
from torch import Tensor, nn

from sdxl_core.models.autoencoder import AutoencoderKL, Downsample, ResnetBlock, Upsample, unscale_latent
from sdxl_core.ops.attention import in_query_chunks
from sdxl_core.ops.strips import Known, Strips, activated, added, convolved, doubled, drain, forked, measured, regrouped


@dataclass(frozen=True, slots=True)
class Pieces:
    """How to compute without the whole.

    Args:
        keep_finest: whether the maps between the blocks of the finest level are kept. Without, the largest map that is
            kept takes half as much in the decoder and a quarter in the encoder, for more arithmetic.
        strip_bytes: largest size of one strip, and of a block of attention weights; some ten are alive at once.
        store: where the maps between blocks are kept; None for the device that computes.
    """

    keep_finest: bool = True
    strip_bytes: int = 2**23
    store: torch.device | None = None


@dataclass(frozen=True, slots=True)
class _Stage:
    """A few layers at once.

    Args:
        run: what they make of the strips of a map.
        norms: theirs, in the order of the walk.
        kept: whether the map that they give is kept.
        entry: the norm that reads the map that they are given, if it is the first to read it.
    """

    run: Callable[[Strips, Known], Strips]
    norms: tuple[nn.GroupNorm, ...] = ()
    kept: bool = False
    entry: nn.GroupNorm | None = None


def decode_in_pieces(model: AutoencoderKL, latent: Tensor, pieces: Pieces) -> Tensor:
    """What `model.decode` gives: the image (b, 3, h, w) of a scaled latent (b, z, h/8, w/8)."""
    decoder = model.decoder
    stages: list[_Stage] = []
    for depth, (blocks, upsample) in reversed(list(enumerate(_levels(decoder.up)))):
        stages += [_block(block, pieces, kept=depth > 0 or pieces.keep_finest) for block in blocks]
        if isinstance(upsample, Upsample):
            stages.append(_double(upsample, pieces))
    stages.append(_head(decoder.norm_out, decoder.conv_out))
    attention = in_query_chunks(decoder.mid.attn_1.attention, pieces.strip_bytes)
    z = model.post_quant_conv(unscale_latent(latent, model.config))
    source = regrouped(iter([decoder.mid(decoder.conv_in(z), attention)]), pieces.strip_bytes)
    return torch.cat(list(_walk(source, stages, pieces)), dim=2)


def moments_in_pieces(model: AutoencoderKL, image: Tensor, pieces: Pieces) -> tuple[Tensor, Tensor]:
    """What `model.moments` gives: mean and log-variance (b, z, h/8, w/8) of an image (b, 3, h, w)."""
    encoder = model.encoder
    stages = [_Stage(lambda strips, known: convolved(strips, encoder.conv_in))]
    for depth, (blocks, downsample) in enumerate(_levels(encoder.down)):
        kept = depth > 0 or pieces.keep_finest
        stages += [_block(block, pieces, kept=kept) for block in blocks[:-1]]
        # What is halved next is kept when it is a quarter as large.
        stages.append(_block(blocks[-1], pieces, kept=kept and downsample is None))
        if isinstance(downsample, Downsample):
            stages.append(_halve(downsample))
    # The first convolution makes of 3 channels many.
    source = regrouped(iter([image]), pieces.strip_bytes * model.config.in_channels // model.config.ch)
    h = torch.cat(list(_walk(source, stages, pieces)), dim=2)
    h = encoder.mid(h, in_query_chunks(encoder.mid.attn_1.attention, pieces.strip_bytes))
    return model.split(encoder.conv_out(encoder.act(encoder.norm_out(h))))


def _levels(levels: nn.ModuleList) -> Iterator[tuple[list[ResnetBlock], Upsample | Downsample | None]]:
    for level in levels:
        change = next((layer for layer in level.children() if isinstance(layer, Upsample | Downsample)), None)
        yield [block for block in level.modules() if isinstance(block, ResnetBlock)], change


def _block(block: ResnetBlock, pieces: Pieces, *, kept: bool) -> _Stage:
    def branch(strips: Strips, known: Known) -> Strips:
        h = convolved(activated(strips, block.norm1, known), block.conv1)
        return convolved(activated(h, block.norm2, known), block.conv2)

    def run(strips: Strips, known: Known) -> Strips:
        strips = regrouped(strips, pieces.strip_bytes)
        if block.norm2 not in known:  # nothing will come out, and a second reader would have to keep all of the map
            return branch(strips, known)
        strips, beside = forked(strips)
        return added(branch(strips, known), map(block.nin_shortcut, beside), pieces.strip_bytes)

    return _Stage(run, (block.norm1, block.norm2), kept, entry=block.norm1)


def _double(layer: Upsample, pieces: Pieces) -> _Stage:
    return _Stage(lambda strips, known: doubled(regrouped(strips, pieces.strip_bytes // 4), layer.conv))


def _halve(layer: Downsample) -> _Stage:
    return _Stage(lambda strips, known: convolved(strips, layer.conv, beyond=(0, 1)), kept=True)


def _head(norm: nn.GroupNorm, conv: nn.Conv2d) -> _Stage:
    return _Stage(lambda strips, known: convolved(activated(strips, norm, known), conv), (norm,), entry=norm)


def _walk(source: Strips, stages: Sequence[_Stage], pieces: Pieces) -> Strips:
    """Through all stages, from one kept map to the next."""
    known: Known = {}
    kept = list(source)
    together: list[_Stage] = []
    device = kept[0].device
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        together.append(stage)
        if stage.kept:
            strips = _through(together, kept, known, device)
            if following is not None and following.entry is not None:
                strips = measured(strips, following.entry, known)
            kept, together = [strip.to(pieces.store or device) for strip in strips], []
    return _through(together, kept, known, device)


def _through(stages: Sequence[_Stage], kept: list[Tensor], known: Known, device: torch.device) -> Strips:
    """From one kept map to the strips of the next; the former is given up on the way."""
    for norm in [norm for stage in stages for norm in stage.norms]:
        if norm not in known:
            drain(_run(stages, iter(kept), known, device))
    return _run(stages, _given_up(kept), known, device)


def _run(stages: Sequence[_Stage], strips: Strips, known: Known, device: torch.device) -> Strips:
    strips = map(methodcaller("to", device), strips)
    for stage in stages:
        strips = stage.run(strips, known)
    return strips


def _given_up(kept: list[Tensor]) -> Strips:
    kept.reverse()
    while kept:
        yield kept.pop()
