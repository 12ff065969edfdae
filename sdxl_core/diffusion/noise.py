"""Noise that belongs to a picture, not to a batch."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BITS = 16  # of the grid of levels on which a path is known: 2^16 to an octave, 1.1e-5 of a level apart


class BrownianPath:
    """One picture's Brownian motion B over tau = 1 / sigma^2, the same whichever levels it is asked for.

    Why this axis: with y = x / sigma^2 the reverse diffusion is dy = denoised dtau + dB, so that every list of levels,
    however coarse, is driven by one and the same noise; on an axis of sigma that would hold in the limit of small steps
    only.

    An octave of levels, from 2 sigma down to sigma, has an increment of its own; within it a binary tree halves
    ln(sigma), each midpoint drawn given the two ends (a Brownian bridge). Every draw has a generator of its own, seeded
    from the picture's seed and the place in the tree, so nothing depends on the order of the questions, and the draws
    of a start are not touched. A value costs at most BITS + 1 draws, a question one more for every octave it spans; the
    last two values are kept, as most questions begin where one before ended.

    Args:
        seed: the picture's.
        shape: of the values, (c, h, w).
    """

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        self.seed = seed
        self.shape = shape
        self._recent: dict[int, Tensor] = {}

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """B(sigma_next) - B(sigma) over its standard deviation: (c, h, w), float32, unit variance.

        Increments over disjoint intervals are independent, and neighbours add up: weighted with `deviation`, those of
        (a, b) and (b, c) are that of (a, c). Levels nearer than the grid, 1.1e-5 of themselves, count as one place
        apart.

        Raises:
            ValueError: not sigma > sigma_next > 0.
        """
        start, end = self._places(sigma, sigma_next)
        at_start = self._value(start)  # before the end, which takes the place of the oldest value kept
        increment = self._value(end) - at_start
        for octave in range(start >> BITS, end >> BITS):
            increment = increment + self._across(octave)
        return increment / _deviation(start, end)

    def deviation(self, sigma: float, sigma_next: float) -> float:
        """The standard deviation of B(sigma_next) - B(sigma)."""
        return _deviation(*self._places(sigma, sigma_next))

    def _places(self, sigma: float, sigma_next: float) -> tuple[int, int]:
        """The two levels on the grid; a place is -log2(sigma) in steps of the grid, so lower levels come later."""
        if not 0 < sigma_next < sigma < math.inf:
            raise ValueError(f"a path goes from a level down to a lower one above 0, not from {sigma} to {sigma_next}")
        start, end = (round(-math.log2(level) * 2**BITS) for level in (sigma, sigma_next))
        return start, max(end, start + 1)

    def _value(self, place: int) -> Tensor:
        """B at a place of the grid, less B at the beginning of its octave."""
        if place not in self._recent:
            self._recent[place] = self._descended(place)
            while len(self._recent) > 2:
                del self._recent[next(iter(self._recent))]
        self._recent[place] = value = self._recent.pop(place)  # the newest is the last
        return value

    def _descended(self, place: int) -> Tensor:
        octave = place >> BITS
        low, high = octave << BITS, (octave + 1) << BITS
        at_low, at_high = torch.zeros(self.shape), self._across(octave)
        while low < place:
            middle = (low + high) // 2
            whole, first = _elapsed(low, high), _elapsed(low, middle)
            spread = math.sqrt(first * (whole - first) / whole)
            at_middle = torch.lerp(at_low, at_high, first / whole).add_(self._draw(middle), alpha=spread)
            if place >= middle:
                low, at_low = middle, at_middle
            else:
                high, at_high = middle, at_middle
        return at_low

    def _across(self, octave: int) -> Tensor:
        """The increment over a whole octave."""
        return _deviation(octave << BITS, (octave + 1) << BITS) * self._draw(octave << BITS)

    def _draw(self, place: int) -> Tensor:
        """The standard normal draw that belongs to a place: the beginning of an octave, or the middle of a halving."""
        words = np.random.SeedSequence(self.seed, spawn_key=(place % 2**64,)).generate_state(1, np.uint64)
        generator = torch.Generator("cpu").manual_seed(int(words[0]))
        return torch.randn(self.shape, generator=generator, dtype=torch.float32)


def _elapsed(start: int, end: int) -> float:
    """The tau from one place to a later one."""
    return math.pow(4.0, start / 2**BITS) * math.expm1(math.log(4) * (end - start) / 2**BITS)


def _deviation(start: int, end: int) -> float:
    return math.sqrt(_elapsed(start, end))


class PictureNoise:
    """Standard normal draws for a batch, row i always from picture i's own CPU generator; a `Noise`.

    A picture is therefore the same alone or in any batch, and on any device. The first draw of a seed is what
    diffusers and ComfyUI draw for that seed on the CPU.

    Args:
        seeds: one a picture.
        shape: (c, h, w) of one latent.
        device: where the draws are moved to; they are made on the CPU, in float32.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.device = torch.device(device)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._paths = [BrownianPath(seed, shape) for seed in seeds]

    def __call__(self) -> Tensor:
        """The next (b, c, h, w) draw."""
        rows = [torch.randn(self.shape, generator=g, dtype=torch.float32) for g in self._generators]
        return torch.stack(rows).to(self.device)

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The (b, c, h, w) increments of the pictures' paths from sigma down to sigma_next; see `BrownianPath`."""
        return torch.stack([path.between(sigma, sigma_next) for path in self._paths]).to(self.device)

    def start(self, sigma: float) -> Tensor:
        """The latent a run begins with: the next draw, times sqrt(1 + sigma^2).

        The root makes the first network input have the variance of a noised latent of unit variance. Source: the
        original engine; diffusers does the same.
        """
        return self() * math.sqrt(1 + sigma**2)
