"""What guidance does inside the network: attention made worse on purpose, attention watched, features reweighted.

Each is a function that a `Touch` carries into one call of the UNet.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.config import NetworkConfig
from sdxl_core.diffusion.blur import blur, gaussian
from sdxl_core.guider_config import FreeUConfig, SagConfig
from sdxl_core.ops.attention import Attention
from sdxl_core.types import Merge


def own_values(kernel: Attention, q: Tensor, k: Tensor, v: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Every position attends to itself alone: an `Attend`.

    Source: Ahn et al. 2024, arXiv:2403.17377, section 4.2 (perturbed-attention guidance).
    """
    return v


@dataclass(frozen=True, slots=True)
class BlurredQueries:
    """Every position asks what its neighbours ask on average: an `Attend`.

    Args:
        blur: standard deviation of the Gaussian in cells of the map; None for infinite, the mean of all queries.

    Source: Hong 2024, arXiv:2408.00760, section 4.2 (smoothed energy guidance).
    """

    blur: float | None

    def __call__(self, kernel: Attention, q: Tensor, k: Tensor, v: Tensor, *, size: tuple[int, int]) -> Tensor:
        """See `Attend`."""
        if self.blur is None:
            smooth = q.mean(dim=2, keepdim=True).expand_as(q)
        else:
            b, heads, n, d = q.shape
            grid = q.transpose(2, 3).reshape(b, heads * d, *size)
            reach = min(math.ceil(6 * self.blur) // 2, max(size) // 2)  # `blur` takes no more of the window
            smooth = blur(grid, gaussian(self.blur, reach)).reshape(b, heads, d, n).transpose(2, 3)
        return kernel(smooth, k, v)


@dataclass(slots=True)
class WatchedAttention:
    """The kernel as it is; keeps how much the first layer's positions are attended to in the first rows: an `Attend`.

    Args:
        rows: how many rows of the batch are watched.

    Attributes:
        attended: (rows, 1, h, w) attention received by each position, summed over all that ask, mean of the heads; its
            mean is 1. None until a layer was run.
    """

    rows: int
    attended: Tensor | None = field(default=None, init=False)

    def __call__(self, kernel: Attention, q: Tensor, k: Tensor, v: Tensor, *, size: tuple[int, int]) -> Tensor:
        """See `Attend`."""
        if self.attended is None:
            total = torch.zeros(self.rows, q.shape[2], dtype=torch.float32, device=q.device)
            for head in range(q.shape[1]):  # one at a time: all maps together would be the largest tensor of the run
                scores = q[: self.rows, head].float() @ k[: self.rows, head].float().transpose(1, 2)
                total += torch.softmax(scores * q.shape[3] ** -0.5, dim=-1).sum(dim=1)
            self.attended = (total / q.shape[1]).reshape(self.rows, 1, *size)
        return kernel(q, k, v)


def degraded(x0: Tensor, attended: Tensor, config: SagConfig) -> Tensor:
    """A clean latent blurred where the network looked: what self-attention guidance moves away from.

    Args:
        x0: (b, c, h, w).
        attended: (b, 1, h', w') as `WatchedAttention` keeps it.
        config: how strongly it is blurred, in a window of 9 cells, and from how much attention on.

    Source: Hong et al. 2022, arXiv:2210.00939, section 5.2 and equation 25.
    """
    mask = F.interpolate((attended > config.threshold).to(x0.dtype), x0.shape[2:], mode="nearest")
    return x0 + mask * (blur(x0, gaussian(config.blur, 4)) - x0)


def free_u(config: FreeUConfig, network: NetworkConfig) -> Merge:
    """Stronger features from below and less of the skip's lowest frequencies, on the way up: a `Merge`.

    What comes from below with the width of the widest level takes b1 and s1, with the next width b2 and s2.

    Source: Si et al. 2023, arXiv:2309.11497, equations 4 to 8; version 1 is that of its first revision, where b is a
    constant. Stages are told by their width, as in the authors' code: the first stage of a level is still as wide as
    the level below.
    """
    widths = sorted({mult * network.model_channels for mult in network.channel_mult}, reverse=True)
    factors = dict(zip(widths, ((config.b1, config.s1), (config.b2, config.s2)), strict=False))
    strengthen: Callable[[Tensor, float], Tensor] = _strengthened if config.version == 2 else _multiplied

    def merge(h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        if h.shape[1] not in factors:
            return h, skip
        b, s = factors[h.shape[1]]
        return strengthen(h, b), scaled_low_frequencies(skip, s)

    return merge


def _multiplied(h: Tensor, b: float) -> Tensor:
    half = h.shape[1] // 2
    return torch.cat([h[:, :half] * b, h[:, half:]], dim=1)


def _strengthened(h: Tensor, b: float) -> Tensor:
    """Half of the channels times 1 to b, growing with the mean feature of the position within its picture."""
    half = h.shape[1] // 2
    mean = h.mean(dim=1, keepdim=True)
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    share = (mean - low) / (high - low).clamp(min=torch.finfo(h.dtype).tiny)
    return torch.cat([h[:, :half] * ((b - 1) * share + 1), h[:, half:]], dim=1)


def scaled_low_frequencies(x: Tensor, s: float) -> Tensor:
    """Multiply the two lowest frequencies of each side, -1 and 0 in cycles a picture, by s; dtype of x.

    That the pair is not symmetric is the authors' filter; the picture is its real part.
    """
    frequencies = torch.fft.fft2(x.float())
    rows, columns = (slice(None, None, max(1, side - 1)) for side in x.shape[2:])  # the first and the last
    frequencies[..., rows, columns] *= s
    filtered: Tensor = torch.fft.ifft2(frequencies).real.to(x.dtype)
    return filtered
