"""Latents of a whole image folder, computed once and kept beside the run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sdxl_core.checkpoints.save import save_weights
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.progress import SILENT, Reporter
from sdxl_core.training.data import Picture, load_crop, nearest_bucket


class LatentCache:
    """Moments and size conditioning of every picture, by its index in the folder.

    Args:
        moments: index -> (2 z, h/8, w/8) float16, unscaled mean and standard deviation of the encoding.
        sizes: (n, 6) float32: original size, crop corner, target size; each (height, width) or (top, left).
    """

    def __init__(self, moments: list[Tensor], sizes: Tensor) -> None:
        self.moments, self.sizes = moments, sizes


def _fingerprint(
    pictures: Sequence[Picture], buckets: Sequence[tuple[int, int]], model: AutoencoderKL, seed: int
) -> str:
    digest = hashlib.sha256(json.dumps([list(buckets), seed]).encode())
    for picture in pictures:
        status = picture.path.stat()  # a picture drawn anew under its old name has other latents
        digest.update(f"{picture.path.name}{picture.size}{status.st_size}{status.st_mtime_ns}".encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def cache_latents(
    pictures: Sequence[Picture],
    buckets: Sequence[tuple[int, int]],
    model: AutoencoderKL,
    path: Path,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> LatentCache:
    """Encode every picture at one random crop of its bucket, or read what an earlier call for the same inputs wrote.

    The file at `path` holds the fingerprint of pictures, buckets and autoencoder; another one is replaced.
    """
    fingerprint = _fingerprint(pictures, buckets, model, seed)
    chosen = [nearest_bucket(p.size, buckets) for p in pictures]
    by_bucket = {b: [i for i, c in enumerate(chosen) if c == b] for b in sorted(set(chosen))}
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("fingerprint") == fingerprint:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return _unpack(stored, by_bucket, len(pictures))
    stored = {}
    sizes = torch.zeros(len(pictures), 6)
    reporter.start("encoding pictures", len(pictures), "pictures")
    for bucket, indexes in by_bucket.items():
        parts = []
        for start in range(0, len(indexes), batch_size):
            chunk = indexes[start : start + batch_size]
            crops = [load_crop(pictures[i], bucket, torch.Generator().manual_seed(seed + i)) for i in chunk]
            for i, crop in zip(chunk, crops, strict=True):
                sizes[i] = torch.tensor([*crop.original_size, *crop.crop_coords_top_left, *bucket])
            image = torch.stack([c.image for c in crops]).to(device, memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                mean, logvar = model.moments(image)
            parts.append(torch.cat([mean.float(), torch.exp(0.5 * logvar.float())], 1).half().cpu())
            reporter.advance(len(chunk))
        stored[f"{bucket[0]}x{bucket[1]}"] = torch.cat(parts)
    reporter.finish()
    stored["sizes"] = sizes
    save_weights(path, stored, metadata={"fingerprint": fingerprint})
    return _unpack(stored, by_bucket, len(pictures))


def _unpack(stored: dict[str, Tensor], by_bucket: dict[tuple[int, int], list[int]], count: int) -> LatentCache:
    moments: list[Tensor] = [torch.empty(0)] * count
    for bucket, indexes in by_bucket.items():
        for row, index in enumerate(indexes):
            moments[index] = stored[f"{bucket[0]}x{bucket[1]}"][row]
    return LatentCache(moments, stored["sizes"])
