"""Noise that belongs to a picture, not to a batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sdxl_core.compat import Start
from sdxl_core.diffusion.philox import CudaNoise
from sdxl_core.ops.transfer import sent

BITS = 16  # of the grid of levels on which a path is known: 2^16 to an octave, 1.1e-5 of a level apart


class BrownianPath:
    """One picture's Brownian motion B over tau = 1 / (1 + sigma^2), the same whichever levels it is asked for.

    Why this axis: for data of unit variance, which latents are scaled to, y = tau x has the reverse diffusion dy = dB.
    The exact step between any two levels then adds the increment of one and the same motion, and methods that come near
    the exact step come near one picture whatever the steps. On the axis of sigma, which k-diffusion has, even exact
    steps would not. tau is alpha_bar, the share of signal in the variance.

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
    variance, variance_next = (math.pow(4.0, -place / 2**BITS) for place in (start, end))
    fall = -variance * math.expm1(-math.log(4) * (end - start) / 2**BITS)
    return fall / ((1 + variance) * (1 + variance_next))


def _deviation(start: int, end: int) -> float:
    return math.sqrt(_elapsed(start, end))


@dataclass(frozen=True, slots=True)
class Stream:
    """Where the draws of one picture come from: a row of what one generator draws for so many rows at once.

    Args:
        seed: of the generator.
        row, rows: which row of how many.
        noise: torch's generator on the CPU, or that of CUDA, see `CudaNoise`.
    """

    seed: int
    row: int = 0
    rows: int = 1
    noise: Literal["cpu", "cuda"] = "cpu"

    def open(self, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """The generator at its beginning: every call gives all the rows, (rows, *shape), float32 on the CPU."""
        whole = (self.rows, *shape)
        if self.noise == "cuda":
            cuda = CudaNoise(self.seed)
            return lambda: torch.from_numpy(cuda(whole))
        generator = torch.Generator("cpu").manual_seed(self.seed)
        return lambda: torch.randn(whole, generator=generator, dtype=torch.float32)


class PictureNoise:
    """Standard normal draws for a batch, row i always from picture i's own stream; a `Noise`.

    A picture is therefore the same alone or in any batch, and on any device. The first draw of a seed is what
    diffusers and ComfyUI draw for that seed on the CPU.

    Args:
        streams: one a picture; a seed stands for a stream of one row on the CPU.
        shape: (c, h, w) of one latent.
        device: where the draws are moved to; they are made on the CPU, in float32.
    """

    def __init__(
        self, streams: Sequence[int | Stream], shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.shape = shape
        self.device = torch.device(device)
        self._streams = [Stream(stream) if isinstance(stream, int) else stream for stream in streams]
        # Rows of one generator are drawn together, so that a batch of all of them draws each once.
        shared = {(s.seed, s.rows, s.noise): s for s in self._streams}
        self._draws = {key: stream.open(shape) for key, stream in shared.items()}
        self._paths = [BrownianPath(stream.seed + stream.row, shape) for stream in self._streams]

    def __call__(self) -> Tensor:
        """The next (b, c, h, w) draw."""
        drawn = {key: draw() for key, draw in self._draws.items()}
        return sent(torch.stack([drawn[s.seed, s.rows, s.noise][s.row] for s in self._streams]), self.device)

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The (b, c, h, w) increments of the pictures' paths from sigma down to sigma_next; see `BrownianPath`."""
        return sent(torch.stack([path.between(sigma, sigma_next) for path in self._paths]), self.device)

    def begin_another_walk(self) -> None:
        """Give every picture another path: a second walk through the same levels must not meet the first one's noise.

        The draws go on where they are.
        """
        self._paths = [BrownianPath(_next_seed(path.seed), path.shape) for path in self._paths]

    def start(self, sigma: float) -> Tensor:
        """The latent a run begins with: the next draw as `pure_noise`."""
        return pure_noise(self(), sigma)


def _next_seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])


def pure_noise(eps: Tensor, sigma: float, start: Start = "root", highest: float = math.inf) -> Tensor:
    """A latent at level sigma that holds no picture: standard normal eps times sqrt(1 + sigma^2).

    The root makes the first network input have the variance of a noised latent of unit variance.

    Args:
        eps: (b, c, h, w).
        sigma: the level.
        start: root, or what another program does, see `Conventions`.
        highest: the model's highest level.

    Source: the original engine.
    """
    at_top = sigma > highest or math.isclose(sigma, highest, rel_tol=1e-5)
    root = start == "root" or (start == "root_at_top" and at_top)
    return eps * (math.sqrt(1 + sigma**2) if root else sigma)
