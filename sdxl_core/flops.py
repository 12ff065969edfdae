"""How much arithmetic the networks take, told from their configs. Imports no torch.

Counted as PyTorch's `FlopCounterMode` does: two for every multiplication with its addition, in matrix products,
convolutions and attention, borders and causal masks in full; norms, activations and sums are not counted. A row is one
picture, or one side of guidance, or one prompt; a batch takes as many times the work.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sdxl_core.config import (
    ClipTextConfig,
    ConditionerConfig,
    FirstStageConfig,
    NetworkConfig,
    OpenClipTextConfig,
)

Size = tuple[int, int]
"""(height, width)."""

TOKENS = 77
"""Of a prompt, as the text towers read it."""


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations by what they are for.

    Args:
        linear: matrix products with weights.
        conv: convolutions.
        attention: products of queries with keys, and of the weights with values.
    """

    linear: int = 0
    conv: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.conv + self.attention

    def __add__(self, other: "Work") -> "Work":
        return Work(self.linear + other.linear, self.conv + other.conv, self.attention + other.attention)

    def __mul__(self, times: int) -> "Work":
        return Work(self.linear * times, self.conv * times, self.attention * times)


def network_work(network: NetworkConfig, latent: Size, *, own_values: Collection[str] = ()) -> Work:
    """One row of a model call.

    Args:
        network: the UNet.
        latent: size of the latent in cells, an eighth of the picture's.
        own_values: stages whose self-attention has no kernel: every position takes its own value, as in perturbed
            attention.
    """
    width = network.model_channels
    emb = 4 * width
    total = _linear(1, width, emb) + _linear(1, network.adm_in_channels, emb) + _linear(1, emb, emb) * 2

    def res_block(cells: int, c_in: int, c_out: int) -> Work:
        work = _conv(cells, c_in, c_out) + _conv(cells, c_out, c_out) + _linear(1, emb, c_out)
        return work if c_in == c_out else work + _conv(cells, c_in, c_out, kernel=1)

    def transformer(cells: int, channels: int, depth: int, stage: str) -> Work:
        block = _transformer_block(cells, channels, network.context_dim, attends=stage not in own_values)
        project = _linear if network.use_linear_in_transformer else _pointwise
        return block * depth + (project(cells, channels, channels) * 2 if depth else Work())

    def depth(level: int) -> int:
        return network.transformer_depth[level] if 2**level in network.attention_resolutions else 0

    widths = [width * mult for mult in network.channel_mult]
    last = len(widths) - 1
    cells = [_cells(_halved(latent, level)) for level in range(last + 1)]
    channels, skips, entry = width, [width], 1
    total += _conv(cells[0], network.in_channels, width)
    for level, wide in enumerate(widths):
        for _ in range(network.num_res_blocks):
            total += res_block(cells[level], channels, wide)
            total += transformer(cells[level], wide, depth(level), f"input_blocks.{entry}")
            channels, entry = wide, entry + 1
            skips.append(channels)
        if level < last:
            total += _conv(cells[level + 1], channels, channels)
            entry += 1
            skips.append(channels)
    total += res_block(cells[last], channels, channels) * 2
    total += transformer(cells[last], channels, network.transformer_depth[last], "middle_block")
    entry = 0
    for level in range(last, -1, -1):
        for i in range(network.num_res_blocks + 1):
            total += res_block(cells[level], channels + skips.pop(), widths[level])
            total += transformer(cells[level], widths[level], depth(level), f"output_blocks.{entry}")
            channels, entry = widths[level], entry + 1
            if level > 0 and i == network.num_res_blocks:
                total += _conv(cells[level - 1], channels, channels)
    return total + _conv(cells[0], channels, network.out_channels)


def decoder_work(first_stage: FirstStageConfig, size: Size) -> Work:
    """One picture of `size` (pixels) from its latent, whole."""
    widths = [first_stage.ch * mult for mult in first_stage.ch_mult]
    pixels, last, z = _cells(size), len(widths) - 1, first_stage.z_channels
    deepest = pixels // 4**last
    total = _conv(deepest, z, z, kernel=1) + _conv(deepest, z, widths[-1]) + _middle(deepest, widths[-1])
    channels = widths[-1]
    for level in range(last, -1, -1):
        for _ in range(first_stage.num_res_blocks + 1):
            total += _resnet_block(pixels // 4**level, channels, widths[level])
            channels = widths[level]
        if level > 0:
            total += _conv(pixels // 4 ** (level - 1), channels, channels)
    return total + _conv(pixels, channels, first_stage.out_ch)


def encoder_work(first_stage: FirstStageConfig, size: Size) -> Work:
    """The latent of one picture of `size` (pixels), whole."""
    widths = [first_stage.ch * mult for mult in first_stage.ch_mult]
    pixels, last, z = _cells(size), len(widths) - 1, first_stage.z_channels
    deepest = pixels // 4**last
    total, channels = _conv(pixels, first_stage.in_channels, first_stage.ch), first_stage.ch
    for level, wide in enumerate(widths):
        for _ in range(first_stage.num_res_blocks):
            total += _resnet_block(pixels // 4**level, channels, wide)
            channels = wide
        if level < last:
            total += _conv(pixels // 4 ** (level + 1), channels, channels)
    return total + _middle(deepest, channels) + _conv(deepest, channels, 2 * z) + _conv(deepest, 2 * z, 2 * z, kernel=1)


def text_work(conditioner: ConditionerConfig) -> Work:
    """One prompt through every text tower; a tower's layers behind the one that is read are not run."""
    return sum((_tower(tower) for tower in conditioner.towers().values()), Work())


def _tower(tower: ClipTextConfig | OpenClipTextConfig) -> Work:
    width = tower.width
    layer = _linear(TOKENS, width, width) * 4 + _linear(TOKENS, width, 4 * width) * 2
    layer += _attention(TOKENS, TOKENS, width)
    if isinstance(tower, ClipTextConfig):
        return layer * tower.layer_idx
    return layer * tower.layers + _linear(1, width, width)


def _transformer_block(cells: int, channels: int, context_dim: int, *, attends: bool) -> Work:
    feed_forward = _linear(cells, channels, 8 * channels) + _linear(cells, 4 * channels, channels)
    work = _linear(cells, channels, channels) * 6 + _linear(TOKENS, context_dim, channels) * 2 + feed_forward
    work += _attention(cells, TOKENS, channels)
    return work + _attention(cells, cells, channels) if attends else work


def _resnet_block(pixels: int, c_in: int, c_out: int) -> Work:
    work = _conv(pixels, c_in, c_out) + _conv(pixels, c_out, c_out)
    return work if c_in == c_out else work + _conv(pixels, c_in, c_out, kernel=1)


def _middle(cells: int, channels: int) -> Work:
    attended = _pointwise(cells, channels, channels) * 4 + _attention(cells, cells, channels)
    return _resnet_block(cells, channels, channels) * 2 + attended


def _linear(rows: int, c_in: int, c_out: int) -> Work:
    return Work(linear=2 * rows * c_in * c_out)


def _conv(cells_out: int, c_in: int, c_out: int, *, kernel: int = 3) -> Work:
    return Work(conv=2 * cells_out * c_in * c_out * kernel**2)


def _pointwise(cells: int, c_in: int, c_out: int) -> Work:
    return _conv(cells, c_in, c_out, kernel=1)


def _attention(queries: int, keys: int, channels: int) -> Work:
    return Work(attention=4 * queries * keys * channels)


def _halved(size: Size, times: int) -> Size:
    """What the UNet's convolutions of stride 2 leave: odd sides are rounded up."""
    for _ in range(times):
        size = (size[0] + 1) // 2, (size[1] + 1) // 2
    return size


def _cells(size: Size) -> int:
    return size[0] * size[1]
