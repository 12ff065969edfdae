"""The few values that networks, guiders and samplers hand to each other.

Importing this module does not import torch, so that plans can read the table of samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdxl_core.ops.attention import Attention


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the network is told about the picture, one row a picture.

    Args:
        crossattn: (m, n, d) token features for cross-attention (d 2048 in the base, 1280 in the refiner) of the last
            m <= b rows. Those of the others are zeros, as an empty negative prompt's are in the base, and need not be
            there.
        vector: (b, v) features joined to the time embedding (v 2816 in the base, 2560 in the refiner).
        concat: (b, c, h/8, w/8) channels joined to the noisy latent, or None.
    """

    crossattn: Tensor
    vector: Tensor
    concat: Tensor | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """The same conditioning on another device or in another dtype."""
        concat = None if self.concat is None else self.concat.to(device=device, dtype=dtype)
        return Conditioning(
            self.crossattn.to(device=device, dtype=dtype), self.vector.to(device=device, dtype=dtype), concat
        )

    def without_words(self) -> Conditioning:
        """The same without the token features, which are zeros in every row."""
        return replace(self, crossattn=self.crossattn[:0])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch; all parts have a concat or none has."""
        import torch

        words: list[Tensor] = []
        for part in parts:
            missing = len(part.vector) - len(part.crossattn)
            if words and missing:  # behind the first words zeros must be there
                words.append(part.crossattn.new_zeros(missing, *part.crossattn.shape[1:]))
            if len(part.crossattn):
                words.append(part.crossattn)
        concats = [p.concat for p in parts if p.concat is not None]
        if concats and len(concats) != len(parts):
            raise ValueError("some conditionings have a concat part and some have none")
        return Conditioning(
            torch.cat(words or [parts[0].crossattn]),
            torch.cat([p.vector for p in parts]),
            torch.cat(concats) if concats else None,
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What `denoise` returns.

    Args:
        denoised: (b, c, h, w) predicted clean latent after guidance.
        uncond: the unconditional prediction where guidance ran, for samplers that need it; else None.
    """

    denoised: Tensor
    uncond: Tensor | None = None


Network = Callable[["Tensor", "Tensor", Conditioning], "Tensor"]
"""(x_in, c_noise, cond) -> raw output; x_in (b, c_in, h, w), c_noise (b,) timesteps or ln(sigma)/4."""


class Attend(Protocol):
    """What stands in a self-attention layer in the place of its kernel."""

    def __call__(self, kernel: Attention, q: Tensor, k: Tensor, v: Tensor, *, size: tuple[int, int]) -> Tensor:
        """What the layer takes for kernel(q, k, v); all are (b, heads, h w, d), size is (h, w) of the map."""


Merge = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""(features from below, features from the way down) -> both, changed; (b, c, h, w) and (b, c', h, w)."""


@dataclass(frozen=True, slots=True)
class Touch:
    """What guidance changes inside one call of the UNet; where None is passed instead, nothing is and nothing is paid.

    Args:
        attend: takes the kernel's place in the self-attention of `stages`.
        stages: names of the checkpoint, `middle_block`, `input_blocks.4` and the like.
        merge: sees what each stage of the way up is about to join.
    """

    attend: Attend | None = None
    stages: tuple[str, ...] = ()
    merge: Merge | None = None

    def at(self, stage: str) -> Attend | None:
        """What takes the kernel's place in the self-attention of a stage."""
        return self.attend if stage in self.stages else None


class TouchableNetwork(Protocol):
    """A `Network` that guidance can reach into."""

    def __call__(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning, touch: Touch | None = None) -> Tensor:
        """See `Network`; touch is only passed where there is one."""


Denoise = Callable[["Tensor", float], Prediction]
"""(x, sigma) -> Prediction; x (b, c, h, w) = x0 + sigma eps, sigma a Python float > 0."""

Option = bool | int | float | str | tuple[float, ...] | None
"""A value that an option of a sampler or schedule may have; None is a default that depends on the model."""


class Noise(Protocol):
    """Standard normal draws shaped as the latent batch; row i is picture i's own, whatever else is in the batch."""

    def __call__(self) -> Tensor:
        """The next draw, independent of all others."""
        ...

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The draw that belongs to the levels from sigma down to sigma_next > 0, for samplers that solve an SDE.

        The increment of a Brownian path over its standard deviation: the same whenever it is asked for, independent for
        disjoint intervals, and for intervals that overlap correlated by what they share.
        """
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step of a sampler.

    Args:
        index: 0 .. n-1.
        sigma: the noise level that `x` is at now (0 after the last step).
        x: (b, c, h, w) latent at that level.
        denoised: the last prediction of the clean latent, for previews.
        calls: model calls (denoise evaluations) made by this step.
    """

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor
    calls: int
