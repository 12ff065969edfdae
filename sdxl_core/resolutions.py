"""The picture sizes that SDXL was trained on, the one nearest to a wanted shape, and those that it can draw.

Imports no torch.
"""

import math

from sdxl_core.config import ModelConfig
from sdxl_core.errors import UsageError

Size = tuple[int, int]

PUBLISHED_AREA = 1024 * 1024
LARGEST_SIDE = 16384

# (height, width), all of about 1024 x 1024 pixels. Source: SDXL paper, arXiv:2307.01952, appendix I.
PUBLISHED: tuple[Size, ...] = (
    *((512, w) for w in (2048, 1984, 1920, 1856)),
    *((576, w) for w in (1792, 1728, 1664)),
    *((640, w) for w in (1600, 1536)),
    *((704, w) for w in (1472, 1408, 1344)),
    *((768, w) for w in (1344, 1280)),
    *((832, w) for w in (1216, 1152)),
    *((896, w) for w in (1152, 1088)),
    *((960, w) for w in (1088, 1024)),
    *((1024, w) for w in (1024, 960)),
    *((1088, w) for w in (960, 896)),
    *((1152, w) for w in (896, 832)),
    (1216, 832),
    *((h, 768) for h in (1280, 1344)),
    *((h, 704) for h in (1408, 1472)),
    *((h, 640) for h in (1536, 1600)),
    *((h, 576) for h in (1664, 1728, 1792)),
    *((h, 512) for h in (1856, 1920, 1984, 2048)),
)


def resolutions(model: ModelConfig) -> tuple[Size, ...]:
    """The published shapes brought to the native area of `model`, each (height, width), without repeats.

    A model of another area than 1024 x 1024 gets every side scaled and rounded to what its network halves without
    a remainder: the first stage's factor times one halving a level below the first.
    """
    height, width = model.native_size
    if height * width == PUBLISHED_AREA:
        return PUBLISHED
    scale = math.sqrt(height * width / PUBLISHED_AREA)
    unit = int(model.first_stage.factor * 2 ** (len(model.network.channel_mult) - 1))

    def scaled(side: int) -> int:
        return max(unit, math.floor(side * scale / unit + 0.5) * unit)

    return tuple(dict.fromkeys((scaled(h), scaled(w)) for h, w in PUBLISHED))


def nearest_resolution(aspect: float, model: ModelConfig) -> Size:
    """The size (height, width) of `resolutions(model)` whose width / height is nearest to `aspect`, by ratio.

    Raises:
        UsageError: aspect is not a positive finite number.
    """
    if not (math.isfinite(aspect) and aspect > 0):
        raise UsageError(f"an aspect of {aspect} is no shape", hint="give width:height, such as 16:9")
    return min(resolutions(model), key=lambda size: abs(math.log(size[1] / size[0] / aspect)))


def check_size(size: Size, model: ModelConfig) -> None:
    """Refuse a size that the first stage of `model` cannot divide into latents.

    Every multiple of 8 works in SDXL: where a level of the network is odd, the way up stretches to that level's size.

    Raises:
        UsageError: says the nearest size that works.
    """
    factor = model.first_stage.factor
    near = nearest_divisible(size, factor)
    if near != size:
        reason = f"is larger than {LARGEST_SIDE}" if max(size) > LARGEST_SIDE else f"does not divide by {factor}"
        raise UsageError(f"the size {size[1]}x{size[0]} {reason}", hint=f"try {near[1]}x{near[0]}")


def nearest_divisible(size: Size, factor: int) -> Size:
    """The nearest size that divides into latent cells, of which there is at least one."""
    height, width = (min(max(round(side / factor), 1) * factor, LARGEST_SIDE) for side in size)
    return height, width
