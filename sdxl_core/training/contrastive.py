"""Teaching the text towers: captions and pictures of a batch must find each other.

Source: Radford et al. 2021, arXiv:2103.00020. The image tower is small and thrown away afterwards: only the
text towers go into the checkpoint, where the conditioner uses them frozen.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.training.config import ContrastiveLossConfig, TrainConfig
from sdxl_core.training.data import BucketedDraw, Picture, load_crop


class ImageTower(nn.Module):
    """Four strided convolutions and a linear layer a text tower; (b, 3, s, s) in [-1, 1] to unit vectors."""

    def __init__(self, size: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        steps = [3, channels, 2 * channels, 4 * channels, 8 * channels]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(steps):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.GroupNorm(8, c_out), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        # Flattened, not pooled: what is left and what is right is in the captions.
        self.heads = nn.ModuleList(nn.Linear(8 * channels * (size // 16) ** 2, width) for width in widths)

    def forward(self, image: Tensor) -> list[Tensor]:  # noqa: D102
        features = self.body(image)
        return [F.normalize(head(features).float(), dim=-1) for head in self.heads]


class ContrastiveStage:
    """Trains every text tower of the conditioner against one image tower."""

    def __init__(
        self, conditioner: Conditioner, pictures: Sequence[Picture], config: TrainConfig, device: torch.device
    ) -> None:
        if not isinstance(config.loss, ContrastiveLossConfig):
            raise TypeError("a contrastive stage needs a contrastive loss")
        self.loss_config = config.loss
        self.pictures, self.device, self.conditioner = pictures, device, conditioner
        widths = [tower.config.width for tower in conditioner.towers]
        self.images = ImageTower(config.loss.image_size, config.loss.image_channels, widths).to(device)
        # exp(log_scale) is the inverse temperature; CLIP starts at 1/0.07 and caps it at 100.
        self.log_scale = nn.Parameter(torch.full((len(widths),), 2.659, device=device))
        self.modules = nn.ModuleDict({"conditioner": conditioner, "images": self.images})
        self.modules.register_parameter("log_scale", self.log_scale)
        self.draw = BucketedDraw([p.size for p in pictures], config.data.buckets, config.data.batch_size)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Symmetric cross-entropy; pictures with the same caption in one batch share the target evenly."""
        bucket, indexes = self.draw(generator)
        pictures = [self.pictures[i] for i in indexes.tolist()]
        image = torch.stack([load_crop(p, bucket, generator).image for p in pictures]).to(self.device)
        side = self.loss_config.image_size
        image = F.interpolate(image, (side, side), mode="area").contiguous(memory_format=torch.channels_last)
        texts = [p.text for p in pictures]
        same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32, device=self.device)
        target = same / same.sum(1, keepdim=True)
        total = torch.zeros((), device=self.device)
        values = {}
        ids = self.conditioner.token_ids([ConditionRequest(text) for text in texts])
        towers = self.conditioner.towers
        for i, (tower, tokens, seen) in enumerate(zip(towers, ids, self.images(image), strict=True)):
            said = F.normalize(tower.pooled(tokens.to(self.device)).float(), dim=-1)
            logits = self.log_scale[i].clamp(max=4.6052).exp() * (said @ seen.T)
            total = total + 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
            best = logits.detach().argmax(1, keepdim=True)
            values[f"right_{i}"] = same.gather(1, best).mean()
        return total / len(towers), values

    def finish(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The averaged weights of the text towers alone."""
        return {name: value for name, value in weights.items() if name.startswith("conditioner.")}
