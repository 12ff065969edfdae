"""Pictures with captions from an image folder, sorted into multi-aspect buckets.

The layout is the common one: a folder with `metadata.jsonl`, one object a line with `file_name` (relative) and
`text`. Source of the size and crop conditioning: Podell et al. 2023, arXiv:2307.01952, section 2.2.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdxl_core.errors import UsageError

USUAL_SCORE = 6.0  # what a refiner is told of a picture unless something else is known, as in sampling
_UNREADABLE = OSError, ValueError, SyntaxError, Image.DecompressionBombError  # what Pillow's decoders raise


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of the folder; size is its own (height, width) before any resizing, the score 0 to 10."""

    path: Path
    text: str
    size: tuple[int, int]
    aesthetic_score: float = USUAL_SCORE


@dataclass(frozen=True, slots=True)
class Crop:
    """A picture made to fit its bucket: image (3, h, w) in [-1, 1], and where in the resized picture it lies."""

    image: Tensor
    original_size: tuple[int, int]
    crop_coords_top_left: tuple[int, int]


def read_image_folder(root: Path) -> list[Picture]:
    """List the pictures of an image folder; sizes come from the metadata where given, else from the files.

    A line may have an `aesthetic_score`, which only a refiner's training looks at.

    Raises:
        UsageError: no metadata.jsonl that can be read, a line that does not parse, or a picture that is not there.
    """
    metadata = root / "metadata.jsonl"
    if not metadata.is_file():
        raise UsageError(
            f"{root} is not an image folder: it has no metadata.jsonl",
            hint='give a folder whose metadata.jsonl has lines such as {"file_name": "cat.png", "text": "a cat"}',
        )
    try:
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{metadata} is not UTF-8 text", hint="save the file as UTF-8") from None
    except OSError as error:
        raise UsageError(f"cannot read {metadata}: {error.strerror}") from error
    pictures = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = str(entry["file_name"]), str(entry["text"])
            score = float(entry.get("aesthetic_score", USUAL_SCORE))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{metadata}, line {number}: needs a JSON object with file_name and text") from error
        if not 0 <= score <= 10:
            raise UsageError(f"{metadata}, line {number}: aesthetic_score {score} is not between 0 and 10")
        path = root / name
        try:
            if "width" in entry and "height" in entry:
                size = (int(entry["height"]), int(entry["width"]))
            else:
                with Image.open(path) as image:
                    size = (image.height, image.width)
        except (OverflowError, TypeError, *_UNREADABLE) as error:
            raise UsageError(f"{metadata}, line {number}: cannot read {path}: {_reason(error)}") from error
        if min(size) < 1:
            raise UsageError(f"{metadata}, line {number}: a picture of {size[1]}x{size[0]} has no pixels")
        pictures.append(Picture(path, text, size, score))
    if not pictures:
        raise UsageError(f"{metadata} lists no pictures")
    return pictures


def _reason(error: Exception) -> str:
    """Without the name of the file, which the message has."""
    return str(getattr(error, "strerror", None) or error)


def nearest_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to that of size, by the logarithm of the ratio."""
    aspect = math.log(size[1] / size[0])
    return min(buckets, key=lambda bucket: abs(math.log(bucket[1] / bucket[0]) - aspect))


def load_crop(picture: Picture, bucket: tuple[int, int], generator: torch.Generator) -> Crop:
    """Resize a picture so that it covers the bucket, and crop it there at random.

    The crop's corner is in pixels of the resized picture, as the paper conditions on it.

    Raises:
        UsageError: the file is not a readable picture.
    """
    height, width = bucket
    try:
        with Image.open(picture.path) as file:
            image = file.convert("RGB")
    except _UNREADABLE as error:
        raise UsageError(f"cannot read {picture.path}: {_reason(error)}") from error
    scale = max(height / image.height, width / image.width)
    if scale != 1:
        fitted = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(fitted, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    top = int(torch.randint(image.height - height + 1, (), generator=generator))
    left = int(torch.randint(image.width - width + 1, (), generator=generator))
    pixels = np.asarray(image)[top : top + height, left : left + width]
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)
    return Crop(tensor, picture.size, (top, left))


class BucketedDraw:
    """Draws which pictures make the batch of a step; one bucket a batch, buckets by their share of the pictures.

    The draw depends on seed and step alone, so a resumed run continues exactly with no sampler state to save.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], buckets: Sequence[tuple[int, int]], batch_size: int) -> None:
        members: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            members.setdefault(nearest_bucket(size, buckets), []).append(index)
        self.members = {bucket: torch.tensor(indexes) for bucket, indexes in sorted(members.items())}
        self.batch_size = batch_size
        self._weights = torch.tensor([len(indexes) for indexes in self.members.values()], dtype=torch.float64)

    def __call__(self, generator: torch.Generator) -> tuple[tuple[int, int], Tensor]:
        """Return the bucket (height, width) and batch_size picture indexes of it, distinct where it has enough."""
        choice = int(torch.multinomial(self._weights, 1, generator=generator))
        bucket = list(self.members)[choice]
        indexes = self.members[bucket]
        if len(indexes) >= self.batch_size:
            order = torch.randperm(len(indexes), generator=generator)[: self.batch_size]
        else:
            order = torch.randint(len(indexes), (self.batch_size,), generator=generator)
        return bucket, indexes[order]
