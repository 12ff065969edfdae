"""A small image folder and small training configurations."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sdxl_core.training.config import (
    AutoencoderLossConfig,
    ContrastiveLossConfig,
    DataConfig,
    DiffusionLossConfig,
    OptimizerConfig,
    TrainConfig,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}


def write_image_folder(root: Path, size: tuple[int, int] = (64, 64), copies: int = 4) -> Path:
    """Pictures of one flat colour each with a darker square, captioned by the colour; (height, width)."""
    lines = []
    root.mkdir(parents=True, exist_ok=True)
    for colour, rgb in COLOURS.items():
        for copy in range(copies):
            pixels = np.full((*size, 3), rgb, np.uint8)
            pixels[8 * copy : 8 * copy + 16, 16:48] //= 2
            name = f"{colour}-{copy}.png"
            Image.fromarray(pixels).save(root / name)
            lines.append({"file_name": name, "text": f"a {colour} picture"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def train_config(kind: str, **changes: object) -> TrainConfig:
    """A stage for the tiny model: float32, a dozen steps."""
    losses = {
        "autoencoder": AutoencoderLossConfig(kind="autoencoder"),
        "contrastive": ContrastiveLossConfig(kind="contrastive", image_size=32, image_channels=8),
        "diffusion": DiffusionLossConfig(kind="diffusion"),
    }
    values = {
        "name": "tiny",
        "model": "tiny-base",
        "steps": 12,
        "precision": "float32",
        "ema_decay": 0.9,
        "save_every": 5,
        "log_every": 1,
        "data": DataConfig(buckets=((64, 64),), batch_size=4),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "loss": losses[kind],
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]
