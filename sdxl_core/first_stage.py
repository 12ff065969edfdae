"""Pictures to latents and back, one at a time: the way that fits into memory, and never a value that is not finite."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdxl_core.config import Decoding
from sdxl_core.devices import dtype_name, free_memory_bytes, gigabytes, memory_guard
from sdxl_core.errors import MemoryExhaustedError, NumericsError
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.autoencoder_strips import Pieces, decode_in_pieces, moments_in_pieces
from sdxl_core.ops.tiles import blended
from sdxl_core.progress import SILENT, Reporter

Picture = NDArray[np.uint8]
"""(height, width, 3), RGB, 0 to 255."""

TILE, TILE_OVERLAP = 64, 16
"""Latent cells of a blended tile's side, and of what neighbours share: 512 and 128 pixels."""

LIBRARIES_BYTES = 2**28
"""What libraries and the C library's heap hold beside the tensors while a picture is decoded in pieces."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to run the first stage.

    Args:
        title: completes "decoding ...".
        run: (first stage, its input) -> its output.
        memory_bytes: about what it takes beside the weights.
    """

    title: str
    run: Callable[[AutoencoderKL, Tensor], Tensor]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Work:
    """What is being done, in words: `doing` it gives a `result`; `hint` helps where memory does not suffice."""

    doing: str
    result: str
    hint: str


_DECODING = _Work("decoding", "picture", "take a smaller --size")
_ENCODING = _Work("encoding", "latent", "take a smaller picture")


MakeRoom = Callable[[], bool]
"""Gives up CUDA graphs of other networks, which hold memory only to be faster; whether there were any."""


def decode_latents(
    model: AutoencoderKL,
    latents: Tensor,
    *,
    decoding: Decoding = "auto",
    reporter: Reporter = SILENT,
    make_room: MakeRoom = lambda: False,
) -> list[Picture]:
    """Turn latents into pictures, one at a time.

    What comes out of a half-precision first stage with a value that is not finite is done again in float32. With
    `auto`, what does not fit whole is done in pieces, once no room can be made for it. The reporter is told of all.

    Args:
        model: the first stage, on its device and in its dtype.
        latents: (b, 4, h/8, w/8), scaled, on any device.
        decoding: auto, whole, pieces or tiles; all but tiles give the same picture, to rounding.
        reporter: counts pictures.
        make_room: called where memory ran out, before another way is taken.

    Returns:
        b pictures (h, w, 3).

    Raises:
        NumericsError: a latent is not finite, or a picture in float32 either.
        MemoryExhaustedError: a picture does not fit.
    """
    pictures = []
    reporter.start("decoding", len(latents), "pictures")
    try:
        for latent in latents[:, None]:
            if not torch.isfinite(latent).all():
                raise NumericsError("the latent is not finite", hint="sample it again")
            with torch.inference_mode():
                pictures.append(_picture(_decode(model, latent, decoding, reporter, make_room)))
            reporter.advance(1)
    finally:
        reporter.finish()
    return pictures


def encode_images(
    model: AutoencoderKL,
    images: Tensor,
    *,
    noise: Tensor | None = None,
    reporter: Reporter = SILENT,
    make_room: MakeRoom = lambda: False,
) -> Tensor:
    """Turn images into latents, one at a time, whole or in pieces, and again in float32 where half precision overflows.

    Args:
        model: the first stage, on its device and in its dtype.
        images: (b, 3, h, w) in [-1, 1], on any device; h and w are multiples of the factor (8 in SDXL).
        noise: (b, 4, h/8, w/8) standard normal draws, each from its picture's own generator; None takes the most
            likely latents, which need none.
        reporter: is told what was done otherwise.
        make_room: as for `decode_latents`.

    Returns:
        (b, 4, h/8, w/8) float32, scaled, on the device of the first stage.

    Raises:
        NumericsError: a latent is not finite in float32 either.
        MemoryExhaustedError: a picture does not fit.
    """
    latents = []
    for row, image in enumerate(images[:, None]):
        with torch.inference_mode():
            mean, logvar = _encode(model, image, reporter, make_room).chunk(2, dim=1)
            draw = None if noise is None else noise[row : row + 1].to(mean)
            latents.append(model.latent(mean, logvar, draw))
    return torch.cat(latents)


def least_memory_bytes(model: AutoencoderKL, size: tuple[int, int], decoding: Decoding = "auto") -> int:
    """About what decoding one picture of `size` (height, width) takes at the least beside the weights."""
    return min(way.memory_bytes for way in _decoding_ways(model, size, decoding))


def pieces_for(device: torch.device, *, keep_finest: bool = True) -> Pieces:
    """How a device is best worked in pieces: a GPU with larger strips, and with the maps between blocks on the host."""
    if device.type == "cuda":
        return Pieces(keep_finest=True, strip_bytes=2**26, store=torch.device("cpu"))
    return Pieces(keep_finest=keep_finest, strip_bytes=2**23)


def _decode(
    model: AutoencoderKL, latent: Tensor, decoding: Decoding, reporter: Reporter, make_room: MakeRoom
) -> Tensor:
    """The image (1, 3, h, w), float32 and finite."""
    size = (latent.shape[2] * model.config.factor, latent.shape[3] * model.config.factor)
    return _finite(model, latent, lambda m: _decoding_ways(m, size, decoding), _DECODING, reporter, make_room)


def _encode(model: AutoencoderKL, image: Tensor, reporter: Reporter, make_room: MakeRoom) -> Tensor:
    """Both moments (1, 2 z, h/8, w/8), float32 and finite."""
    size = (image.shape[2], image.shape[3])
    return _finite(model, image, lambda m: _encoding_ways(m, size), _ENCODING, reporter, make_room)


def _decoding_ways(model: AutoencoderKL, size: tuple[int, int], decoding: Decoding) -> list[_Way]:
    """The ways to decode that were asked for, the fastest first."""
    factor, device = model.config.factor, _place(model)
    tile = min(size[0], TILE * factor), min(size[1], TILE * factor)
    whole = _Way("whole", AutoencoderKL.decode, _whole_bytes(model, size))
    tiles = _Way(
        "in tiles",
        lambda m, z: blended(m.decode, z, factor=factor, tile=TILE, overlap=TILE_OVERLAP),
        _whole_bytes(model, tile) + 16 * size[0] * size[1],
    )
    pieces = [
        _Way(title, partial(decode_in_pieces, pieces=cut), pieces_bytes(model, size, cut))
        for title, cut in (
            ("in pieces", pieces_for(device)),
            ("in pieces without the finest level", pieces_for(device, keep_finest=False)),
        )
    ]
    return {"auto": [whole, *pieces], "whole": [whole], "pieces": pieces, "tiles": [tiles]}[decoding]


def _encoding_ways(model: AutoencoderKL, size: tuple[int, int]) -> list[_Way]:
    # The finest level is a quarter of the encoder's work, so that beginning it anew costs little.
    cut = pieces_for(_place(model), keep_finest=False)
    return [
        _Way("whole", lambda m, image: torch.cat(m.moments(image), dim=1), _whole_bytes(model, size)),
        _Way(
            "in pieces",
            lambda m, image: torch.cat(moments_in_pieces(m, image, cut), dim=1),
            pieces_bytes(model, size, cut),
        ),
    ]


def _whole_bytes(model: AutoencoderKL, size: tuple[int, int]) -> int:
    """Four maps of the finest level, as wide as the one below: a third more than the tensors, as measured."""
    widths = [model.config.ch * mult for mult in model.config.ch_mult]
    return int(size[0] * size[1] * 4 * widths[min(1, len(widths) - 1)] * _dtype(model).itemsize)


def pieces_bytes(model: AutoencoderKL, size: tuple[int, int], pieces: Pieces) -> int:
    """About what decoding one picture of `size` (height, width) in pieces takes beside the weights.

    The largest map that is kept, or five of the middle's, strips, and what the libraries hold: measured on a CPU.
    Where the finest is not kept, the map below it counts twice: the C library does not give back the room between
    strips, so that the next map of that size finds none.
    """
    pixels, itemsize = size[0] * size[1], _dtype(model).itemsize
    maps = [model.config.ch * mult / 4**depth for depth, mult in enumerate(model.config.ch_mult)]
    kept = max(maps if pieces.keep_finest else [2 * width for width in maps[1:]], default=0.0)
    held = max(0.0 if pieces.store else kept, 5 * maps[-1])
    return int(pixels * (held * itemsize + 24)) + 20 * pieces.strip_bytes + LIBRARIES_BYTES


def _finite(
    model: AutoencoderKL,
    x: Tensor,
    ways: Callable[[AutoencoderKL], list[_Way]],
    work: _Work,
    reporter: Reporter,
    make_room: MakeRoom,
) -> Tensor:
    """The output in float32; where it is not finite in the dtype of the first stage, it is computed anew in float32."""
    out = _fitting(model, x, ways(model), work, reporter, make_room)
    if not torch.isfinite(out).all() and _dtype(model) is not torch.float32:
        reporter.note(f"the {work.result} is not finite in {dtype_name(_dtype(model))}: {work.doing} again in float32")
        with memory_guard(_place(model), f"{work.doing} in float32", work.hint):
            model = copy.deepcopy(model).float()
        out = _fitting(model, x, ways(model), work, reporter, make_room)
    if not torch.isfinite(out).all():
        raise NumericsError(
            f"the {work.doing[:-3]}ed {work.result} is not finite",
            hint="the first stage's weights may be damaged: try another --vae",
        )
    return out


def _fitting(
    model: AutoencoderKL, x: Tensor, ways: list[_Way], work: _Work, reporter: Reporter, make_room: MakeRoom
) -> Tensor:
    """The output of the first way that fits into memory."""
    device = _place(model)
    x = x.to(device, _dtype(model))
    # CUDA refuses what does not fit; a process on the CPU would be killed for it.
    free = free_memory_bytes(device) if device.type == "cpu" else None
    while len(ways) > 1 and free is not None and ways[0].memory_bytes > free:
        needed = f"{work.doing} {ways[0].title} takes about {gigabytes(ways[0].memory_bytes)}"
        reporter.note(f"{needed} and {gigabytes(free)} are free: {work.doing} {ways[1].title}")
        ways = ways[1:]
    while True:
        try:
            with memory_guard(device, f"{work.doing} a picture", work.hint):
                return ways[0].run(model, x).float()
        except MemoryExhaustedError as error:
            if make_room():
                instead = f"{ways[0].title} again, without CUDA graphs"
            elif len(ways) > 1:
                ways = ways[1:]
                instead = ways[0].title
            else:
                raise
            told = error.message
        # Outside the handler, which holds what was allocated.
        reporter.note(f"{told}: {work.doing} {instead}")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _place(model: AutoencoderKL) -> torch.device:
    return model.quant_conv.weight.device


def _dtype(model: AutoencoderKL) -> torch.dtype:
    return model.quant_conv.weight.dtype


def _picture(image: Tensor) -> Picture:
    pixels = ((image[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    # CUDA copies at full speed into memory that is pinned.
    host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pixels.is_cuda)
    array: Picture = host.copy_(pixels.contiguous()).numpy()
    return array
