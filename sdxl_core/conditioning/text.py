"""The two CLIP text towers of SDXL; parameters are named as in the published single file.

Source: Radford et al. 2021, section 2.4; the towers are CLIP ViT-L/14 and OpenCLIP ViT-bigG-14.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdxl_core.conditioning.tokenizer import CONTEXT_LENGTH, END, VOCABULARY_SIZE
from sdxl_core.config import ClipTextConfig, OpenClipTextConfig
from sdxl_core.ops.transfer import sent


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What a tower says about b prompts.

    Args:
        hidden: (b, 77, width) token features for cross-attention.
        pooled: (b, width) features of the whole prompt, or None where the tower gives none.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def dropped(self, drop: Tensor) -> "TextFeatures":
        """Zeros in each row where drop (b,) bool is set, as in conditioning dropout."""
        return TextFeatures(dropped(self.hidden, drop), None if self.pooled is None else dropped(self.pooled, drop))

    def rows(self, index: Tensor) -> "TextFeatures":
        """The features of the prompts at `index` (n,), in that order."""
        return TextFeatures(self.hidden[index], None if self.pooled is None else self.pooled[index])

    def to(self, device: torch.device) -> "TextFeatures":
        """The same on a device."""
        return TextFeatures(self.hidden.to(device), None if self.pooled is None else self.pooled.to(device))


def dropped(x: Tensor, drop: Tensor) -> Tensor:
    """Put zeros into a copy of x (b, ...) in each row where drop (b,) bool is set."""
    return x.masked_fill(sent(drop, x.device).view(-1, *[1] * (x.ndim - 1)), 0)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Every token looks at itself and at those before it; (b, n, heads * d) in and out."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def _init_linear(linear: nn.Linear, std: float, generator: torch.Generator | None) -> None:
    nn.init.normal_(linear.weight, std=std, generator=generator)
    nn.init.zeros_(linear.bias)


def _branch_std(width: int, layers: int) -> float:
    """Spread of the weights that end a residual branch: the sum over all layers keeps its size."""
    return 1 / math.sqrt(2 * layers * width)


def _set_norms(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()


class _ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.out_proj(_causal_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))
        return attended


class _ClipMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(quick_gelu(self.fc1(x)))
        return out


class _ClipLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = _ClipAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = _ClipMlp(width)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out

    def init_weights(self, width: int, layers: int, generator: torch.Generator | None) -> None:
        attention, branch = self.self_attn, _branch_std(width, layers)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            _init_linear(projection, width**-0.5, generator)
        _init_linear(attention.out_proj, branch, generator)
        _init_linear(self.mlp.fc1, (2 * width) ** -0.5, generator)
        _init_linear(self.mlp.fc2, branch, generator)


class _ClipEmbeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, width)
        self.position_embedding = nn.Embedding(CONTEXT_LENGTH, width)

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return embedded


class _ClipEncoder(nn.Module):
    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ClipLayer(width, heads) for _ in range(layers))


class _ClipTextModel(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.embeddings = _ClipEmbeddings(config.width)
        self.encoder = _ClipEncoder(config.width, config.heads, config.layers)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor, layers: int) -> Tensor:
        x: Tensor = self.embeddings(ids)
        for layer in self.encoder.layers[:layers]:
            x = layer(x)
        return x


class _ClipTransformer(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.text_model = _ClipTextModel(config)


class ClipText(nn.Module):
    """CLIP ViT-L/14's text tower: hidden states of layer `layer_idx` (11 of 12), without the final norm.

    Args:
        config: width, layers, heads, layer_idx.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = _ClipTransformer(config)
        self.init_weights()

    def forward(self, ids: Tensor) -> TextFeatures:
        """Token features after `layer_idx` layers; the later layers are not run.

        Args:
            ids: (b, 77) token ids, padded with the end token.
        """
        return TextFeatures(self.transformer.text_model(ids, self.config.layer_idx))

    def pooled(self, ids: Tensor) -> Tensor:
        """(b, width) state at the first end token, after all layers and the final norm (there is no projection).

        What contrastive training teaches; SDXL itself does not use it.
        """
        model = self.transformer.text_model
        hidden = model(ids, self.config.layers)
        at_end = hidden[torch.arange(len(ids), device=ids.device), (ids == END).int().argmax(-1)]
        normed: Tensor = model.final_layer_norm(at_end)
        return normed

    def blank(self, rows: int) -> TextFeatures:
        """Zeros in the shape, dtype and device of what `forward` gives for that many prompts."""
        like = self.transformer.text_model.final_layer_norm.weight
        return TextFeatures(like.new_zeros(rows, CONTEXT_LENGTH, self.config.width))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights with the standard deviations of CLIP; from `generator`, or the global one."""
        model, width, layers = self.transformer.text_model, self.config.width, self.config.layers
        nn.init.normal_(model.embeddings.token_embedding.weight, std=0.02, generator=generator)
        nn.init.normal_(model.embeddings.position_embedding.weight, std=0.01, generator=generator)
        for layer in model.encoder.layers:
            assert isinstance(layer, _ClipLayer)
            layer.init_weights(width, layers, generator)
        _set_norms(self)


class _OpenClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        attended: Tensor = self.out_proj(_causal_attention(q, k, v, self.heads))
        return attended


class _OpenClipMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class _OpenClipLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _OpenClipAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _OpenClipMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def init_weights(self, width: int, layers: int, generator: torch.Generator | None) -> None:
        branch = _branch_std(width, layers)
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5, generator=generator)
        nn.init.zeros_(self.attn.in_proj_bias)
        _init_linear(self.attn.out_proj, branch, generator)
        _init_linear(self.mlp.c_fc, (2 * width) ** -0.5, generator)
        _init_linear(self.mlp.c_proj, branch, generator)


class _OpenClipTransformer(nn.Module):
    def __init__(self, config: OpenClipTextConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_OpenClipLayer(config.width, config.heads) for _ in range(config.layers))


class _OpenClipTextModel(nn.Module):
    def __init__(self, config: OpenClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, config.width))
        self.transformer = _OpenClipTransformer(config)
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, config.width))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, ids: Tensor) -> TextFeatures:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        hidden = x
        for layer in self.transformer.resblocks:
            hidden, x = x, layer(x)
        # The end token has the highest id of all.
        at_end = x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return TextFeatures(hidden, self.ln_final(at_end) @ self.text_projection)


class OpenClipText(nn.Module):
    """OpenCLIP ViT-bigG-14's text tower: penultimate hidden states, and the pooled prompt.

    Args:
        config: width, layers, heads.
    """

    def __init__(self, config: OpenClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _OpenClipTextModel(config)
        self.init_weights()

    def forward(self, ids: Tensor) -> TextFeatures:
        """Hidden states before the last layer, without the final norm; pooled: last layer, normed, projected.

        Args:
            ids: (b, 77) token ids, padded with 0.
        """
        features: TextFeatures = self.model(ids)
        return features

    def pooled(self, ids: Tensor) -> Tensor:
        """(b, width) projected state at the end token: what contrastive training teaches and SDXL uses."""
        features: TextFeatures = self.model(ids)
        assert features.pooled is not None
        return features.pooled

    def blank(self, rows: int) -> TextFeatures:
        """Zeros in the shape, dtype and device of what `forward` gives for that many prompts."""
        like, width = self.model.ln_final.weight, self.config.width
        return TextFeatures(like.new_zeros(rows, CONTEXT_LENGTH, width), like.new_zeros(rows, width))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights with the standard deviations of CLIP; from `generator`, or the global one."""
        model, width, layers = self.model, self.config.width, self.config.layers
        nn.init.normal_(model.token_embedding.weight, std=0.02, generator=generator)
        nn.init.normal_(model.positional_embedding, std=0.01, generator=generator)
        for layer in model.transformer.resblocks:
            assert isinstance(layer, _OpenClipLayer)
            layer.init_weights(width, layers, generator)
        nn.init.normal_(model.text_projection, std=width**-0.5, generator=generator)
        nn.init.constant_(model.logit_scale, math.log(1 / 0.07))
        _set_norms(self)


TextTower = ClipText | OpenClipText
