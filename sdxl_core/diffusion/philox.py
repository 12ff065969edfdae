"""The normal noise of torch on CUDA, computed without a GPU."""

import numpy as np
from numpy.typing import NDArray

_UINT32 = NDArray[np.uint32]
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)


class CudaNoise:
    """Standard normal draws of a CUDA generator of torch, one after the other.

    On a GPU thread i makes number i of a draw. Where a draw has more numbers than the GPU has threads, which depends on
    the GPU, the later numbers there are others than here. The last digits may differ: logarithm and sine are numpy's.

    Args:
        seed: 0 .. 2^64 - 1.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox 4x32-10); the layout of counter
    and key is that of cuRAND.
    """

    def __init__(self, seed: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._draw = 0

    def __call__(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next draw, float32."""
        count = int(np.prod(shape))
        counter = np.zeros((4, count), dtype=np.uint32)
        counter[0] = self._draw
        counter[2] = np.arange(count, dtype=np.uint32)
        self._draw += 1
        first, second = _philox(counter, self._key)[:2].astype(np.float32)
        step = np.float32(2.0**-32)
        uniform = first * step + step / 2
        turn = np.float32(2 * np.pi) * step
        normal = np.sqrt(-2 * np.log(uniform)) * np.sin(second * turn + turn / 2)
        return np.asarray(normal, dtype=np.float32).reshape(shape)


def _philox(counter: _UINT32, key: tuple[int, int]) -> _UINT32:
    """Ten rounds over the (4, n) counters."""
    words = [row.astype(np.uint64) for row in counter]
    keys = list(key)
    for _ in range(_ROUNDS):
        products = [words[2 * i] * np.uint64(_MULTIPLIERS[i]) for i in range(2)]
        high, low = [p >> np.uint64(32) for p in products], [p & _MASK for p in products]
        words = [
            high[1] ^ words[1] ^ np.uint64(keys[0]),
            low[1],
            high[0] ^ words[3] ^ np.uint64(keys[1]),
            low[0],
        ]
        keys = [(k + step) & 0xFFFFFFFF for k, step in zip(keys, _KEY_STEPS, strict=True)]
    return np.stack(words).astype(np.uint32)
