"""Walks that start from pictures: encoded, noised to a strength, kept where a mask says so, or shown to the network."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sdxl_core.canvas import Canvas
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.repaint import Kept
from sdxl_core.engine import Engine
from sdxl_core.first_stage import encode_images
from sdxl_core.masks import to_cells
from sdxl_core.models.autoencoder import unscale_latent
from sdxl_core.pipeline import begin, picture_noise, walk
from sdxl_core.plan import Plan
from sdxl_core.source import Source
from sdxl_core.source_pictures import Pixels
from sdxl_core.types import Step

_HALF = 128  # an inpainting network knows no half-masked pixel


def sample_from(
    engine: Engine, plans: Sequence[Plan], canvases: Sequence[Canvas], noise: PictureNoise | None = None
) -> Iterator[Step]:
    """Walk one batch from pictures to latents; all else as `sample`.

    At strength 1 the walk begins as that of a picture from words does, with the same noise: only a mask, or a network
    that is shown the picture, makes a difference then. Where encodings are drawn, each picture's comes first from its
    generator, then the noise.

    Args:
        engine: the model that the plans name.
        plans: one a picture, each with a source.
        canvases: of the plans' sources, in their order, at the plans' size.
        noise: of the pictures, for a caller that goes on with it; None makes it here.

    Raises:
        ValueError: as `sample`; a plan has no source, or a canvas is missing or of another size.
        UsageError, MemoryExhaustedError, NumericsError: as `sample`.
    """
    sources = [plan.source for plan in plans if plan.source is not None]
    sizes = {canvas.image.shape[:2] for canvas in canvases}
    if not len(sources) == len(plans) == len(canvases) or sizes - {plan.size for plan in plans}:
        raise ValueError("every plan needs a source, and a canvas of its size")
    if noise is None:
        noise = picture_noise(engine, plans)
    sigmas, source = plans[0].sigmas(), sources[0]
    images = torch.cat([_image(canvas.image) for canvas in canvases])
    latents = _encoded(engine, source, images, noise) if source.is_encoded_whole else None
    eps = noise()
    x = begin(plans[0], eps, sigmas[0]) if latents is None or source.strength == 1 else latents + sigmas[0] * eps
    kept = None
    if latents is not None and source.repaints_a_part and source.condition == "none":
        cells = [to_cells(_mask(canvas), engine.config.first_stage.factor) for canvas in canvases]
        kept = Kept(latents, eps, torch.from_numpy(np.stack(cells))[:, None].to(engine.device))
        x = kept.start(x, sigmas[0])
    shown = _shown(engine, source, canvases, images, latents, noise)
    return walk(engine, plans, x, sigmas, noise, schedule=plans[0].schedule(), kept=kept, shown=shown)


def sample_from_latents(
    engine: Engine, plans: Sequence[Plan], latents: Tensor, noise: PictureNoise | None = None
) -> Iterator[Step]:
    """Walk one batch from clean latents: noise is added to them, to the plans' strength; all else as `sample_from`.

    Args:
        engine: the model that the plans name.
        plans: one a picture, each with a source.
        latents: (b, 4, h/8, w/8) float32, scaled.
        noise: of the pictures, for a caller that goes on with it; None makes it here.
    """
    if noise is None:
        noise = picture_noise(engine, plans)
    sigmas = plans[0].sigmas()
    x = latents.to(engine.device) + sigmas[0] * noise()
    return walk(engine, plans, x, sigmas, noise, schedule=plans[0].schedule())


def _encoded(engine: Engine, source: Source, images: Tensor, noise: PictureNoise) -> Tensor:
    """Latents (b, 4, h/8, w/8) of images (b, 3, h, w), drawn with each picture's next noise on wish."""
    draw = noise() if source.how.encoding == "sample" else None
    return encode_images(engine.first_stage, images, noise=draw, make_room=engine.make_room)


def _shown(
    engine: Engine,
    source: Source,
    canvases: Sequence[Canvas],
    images: Tensor,
    latents: Tensor | None,
    noise: PictureNoise,
) -> Tensor | None:
    """What the network sees beside the noisy latent, (b, c, h/8, w/8).

    To an inpainting model it is the mask, 1 where it is to paint, and the latent of the picture that is grey there. To
    an editing model it is the latent of the picture, scaled or not as that was trained.

    Source: the order of channels in the published inpainting and instruct-pix2pix checkpoints of SDXL.
    """
    config = engine.config
    if source.condition == "none":
        return None
    if source.condition == "edit":
        assert latents is not None
        return latents if config.scale_shown else unscale_latent(latents, config.first_stage)
    masks = [np.where(_mask(canvas) >= _HALF, np.uint8(255), np.uint8(0)) for canvas in canvases]
    grey = torch.from_numpy(np.stack(masks))[:, None] > 0
    cells = torch.from_numpy(np.stack([to_cells(mask, config.first_stage.factor) for mask in masks]))[:, None]
    masked = _encoded(engine, source, images.masked_fill(grey, 0), noise)
    return torch.cat([cells.to(engine.device), masked], dim=1)


def _mask(canvas: Canvas) -> Pixels:
    assert canvas.mask is not None
    return canvas.mask


def _image(pixels: Pixels) -> Tensor:
    """Pixels (h, w, 3) as an image (1, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
