"""Numbers (sizes, crop, score) as sinusoidal features."""

from torch import Tensor, nn

from sdxl_core.ops.layers import sinusoid


class ConcatTimestepEmbedderND(nn.Module):
    """Each number of a tuple through the sinusoid, features joined in the order of the tuple; has no weights.

    Args:
        outdim: features for each number.

    Source: Podell et al. 2023, section 2.2.
    """

    def __init__(self, outdim: int = 256) -> None:
        super().__init__()
        self.outdim = outdim

    def forward(self, numbers: Tensor) -> Tensor:
        """(b, d) numbers to (b, d * outdim) float32 features."""
        return sinusoid(numbers.reshape(-1), self.outdim).reshape(len(numbers), -1)
