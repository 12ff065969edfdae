"""The conditioner: prompts, sizes, crop and score to what the network is told."""

from collections.abc import Collection, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from sdxl_core.conditioning.embedders import ConcatTimestepEmbedderND
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.conditioning.text import ClipText, OpenClipText, TextFeatures, TextTower, dropped
from sdxl_core.conditioning.tokenizer import Tokenizer
from sdxl_core.config import ClipTextConfig, ConditionerConfig, EmbedderConfig, OpenClipTextConfig, SizeEmbedderConfig
from sdxl_core.ops.transfer import sent
from sdxl_core.types import Conditioning


def _build_embedder(config: EmbedderConfig) -> nn.Module:
    match config:
        case ClipTextConfig():
            return ClipText(config)
        case OpenClipTextConfig():
            return OpenClipText(config)
        case SizeEmbedderConfig():
            return ConcatTimestepEmbedderND(config.outdim)


class Conditioner(nn.Module):
    """A list of embedders; token features join `crossattn`, flat features join `vector`, in the order of the config.

    Parameters are named as in the published file under `conditioner.`. Build it on the meta device to load weights, or
    use its fresh ones to train.

    Args:
        config: the embedders.

    Source: Podell et al. 2023, section 2; the conditioner of the published configs.
    """

    def __init__(self, config: ConditionerConfig) -> None:
        super().__init__()
        if all(isinstance(e, SizeEmbedderConfig) for e in config.embedders):
            raise ValueError("the conditioner has no text tower: there would be nothing for cross-attention")
        self.config = config
        self.embedders = nn.ModuleList(_build_embedder(e) for e in config.embedders)
        self.tokenizers = tuple(Tokenizer(e.kind) for e in config.embedders if not isinstance(e, SizeEmbedderConfig))

    @property
    def towers(self) -> tuple[TextTower, ...]:
        """The text towers, in the order of the config."""
        return tuple(e for e in self.embedders if isinstance(e, get_args(TextTower)))

    def token_ids(self, requests: Sequence[ConditionRequest]) -> tuple[Tensor, ...]:
        """(b, 77) int64 on the CPU for each text tower; what is too long is left out, see `texts.token_report`."""
        return tuple(
            torch.tensor([tokenizer.padded(_prompt_of(request, tokenizer)) for request in requests])
            for tokenizer in self.tokenizers
        )

    def encode_ids(self, ids: Sequence[Tensor]) -> tuple[TextFeatures, ...]:
        """Run each text tower once on its (b, 77) token ids: the costly part, worth keeping for a repeated prompt."""
        return tuple(
            tower(sent(tower_ids, next(tower.parameters()).device))
            for tower, tower_ids in zip(self.towers, ids, strict=True)
        )

    def encode_text(self, requests: Sequence[ConditionRequest]) -> tuple[TextFeatures, ...]:
        """Features of each tower, (b, 77, width); a pair of prompts that several requests share is encoded once."""
        first = {(request.prompt, request.prompt_2): request for request in requests}
        row = {prompts: i for i, prompts in enumerate(first)}
        encoded = self.encode_ids(self.token_ids(list(first.values())))
        index = torch.tensor([row[request.prompt, request.prompt_2] for request in requests])
        return tuple(features.rows(sent(index, features.hidden.device)) for features in encoded)

    def numbers(self, requests: Sequence[ConditionRequest]) -> dict[str, Tensor]:
        """What `assemble` takes: input key to (b, d) float32; d is 2 for sizes and crop (height first), else 1."""
        values = {
            e.input_key: [getattr(request, e.input_key) for request in requests]
            for e in self.config.embedders
            if isinstance(e, SizeEmbedderConfig)
        }
        return {key: torch.tensor(v, dtype=torch.float32).reshape(len(requests), -1) for key, v in values.items()}

    def assemble(
        self,
        text: Sequence[TextFeatures],
        numbers: Mapping[str, Tensor],
        *,
        force_zero: Collection[str] = (),
        generator: torch.Generator | None = None,
    ) -> Conditioning:
        """Join features of the towers with those of the numbers, in the order of the config.

        Args:
            text: what `encode_ids` or `encode_text` gave, b rows each.
            numbers: (b, d) for each input key that an embedder reads.
            force_zero: input keys (`txt`, `original_size`, ...) whose embedders give zeros.
            generator: training: each embedder's output is zeroed for each row with the embedder's own `ucg_rate`,
                drawn from this CPU generator, tokens and pooled vector together; None: nothing is dropped.

        Raises:
            ValueError: `force_zero` names a key that no embedder reads.
        """
        if unknown := set(force_zero) - {e.input_key for e in self.config.embedders}:
            raise ValueError(f"no embedder reads {', '.join(sorted(unknown))}")
        remaining = iter(text)
        device, dtype = text[0].hidden.device, text[0].hidden.dtype
        rows = len(text[0].hidden)
        crossattn: list[Tensor] = []
        vector: list[Tensor] = []
        for config, embedder in zip(self.config.embedders, self.embedders, strict=True):
            drop = torch.zeros(rows, dtype=torch.bool)
            if config.input_key in force_zero:
                drop = torch.ones(rows, dtype=torch.bool)
            elif generator is not None and config.ucg_rate > 0:
                drop = torch.rand(rows, generator=generator) < config.ucg_rate
            if isinstance(config, SizeEmbedderConfig):
                vector.append(dropped(embedder(sent(numbers[config.input_key], device)).to(dtype), drop))
            else:
                features = next(remaining).dropped(drop)
                crossattn.append(features.hidden)
                if features.pooled is not None:
                    vector.append(features.pooled)
        return Conditioning(torch.cat(crossattn, dim=-1), torch.cat(vector, dim=-1))

    def forward(
        self,
        requests: Sequence[ConditionRequest],
        *,
        force_zero: Collection[str] = (),
        generator: torch.Generator | None = None,
    ) -> Conditioning:
        """Conditioning of b requests: crossattn (b, 77, 2048 or 1280), vector (b, 2816 or 2560).

        On the device and in the dtype of the towers. With `txt` in `force_zero` the towers are not run.

        Args:
            requests: one a row, at least one.
            force_zero: input keys whose embedders give zeros, as for an empty negative prompt.
            generator: training: conditioning dropout, see `assemble`.
        """
        text = self._blank_text(len(requests)) if "txt" in force_zero else self.encode_text(requests)
        return self.assemble(text, self.numbers(requests), force_zero=force_zero, generator=generator)

    def _blank_text(self, rows: int) -> tuple[TextFeatures, ...]:
        return tuple(tower.blank(rows) for tower in self.towers)


def _prompt_of(request: ConditionRequest, tokenizer: Tokenizer) -> str:
    if tokenizer.rules == "open_clip" and request.prompt_2 is not None:
        return request.prompt_2
    return request.prompt
