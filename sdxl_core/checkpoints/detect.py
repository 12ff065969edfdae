"""What a checkpoint is, told from the names and shapes of its tensors alone. Imports no torch."""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sdxl_core.checkpoints.header import Header, readable

Kind = Literal[
    "base",
    "refiner",
    "inpaint",
    "edit",
    "distilled",
    "sd1",
    "sd2",
    "other_network",
    "unet_only",
    "diffusers_unet",
    "controlnet",
    "lora",
    "embedding",
    "vae",
    "text_encoder",
    "unknown",
]

UNET = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class NetworkNumbers:
    """The architecture of a UNet as its shapes give it.

    Args:
        model_channels: width of the first level.
        in_channels: channels of the noisy latent and what is joined to it.
        out_channels: channels of the prediction.
        context_dim: features of cross-attention; None without any.
        adm_in_channels: features of the vector condition; None without one.
        depths: transformer blocks after each residual block on the way down.
        middle_depth: transformer blocks in the middle; None without a middle block.
    """

    model_channels: int
    in_channels: int
    out_channels: int
    context_dim: int | None
    adm_in_channels: int | None
    depths: tuple[int, ...]
    middle_depth: int | None


@dataclass(frozen=True, slots=True)
class Detection:
    """What a file is.

    Args:
        kind: `base` and `refiner` can be run; the others are recognised in order to say why not.
        title: the kind in words, with its article.
        reason: what in the file says so.
        network: numbers of the UNet, where there is one in the original layout.
    """

    kind: Kind
    title: str
    reason: str
    network: NetworkNumbers | None


@dataclass(frozen=True)
class _Facts:
    """What the signatures ask about."""

    header: Header

    @cached_property
    def keys(self) -> list[str]:
        return sorted(self.header.tensors)

    @cached_property
    def network(self) -> NetworkNumbers | None:
        return _network(self.header, UNET) or _network(self.header, "")

    def has(self, prefix: str) -> bool:
        """Whether a key starts with the prefix."""
        at = bisect_left(self.keys, prefix)
        return at < len(self.keys) and self.keys[at].startswith(prefix)

    @property
    def clip(self) -> bool:
        return self.has("conditioner.embedders.0.transformer.")

    def open_clip(self, position: int) -> bool:
        return self.has(f"conditioner.embedders.{position}.model.")

    @property
    def widths(self) -> str:
        numbers = self.network
        assert numbers is not None
        return f"label_emb takes {numbers.adm_in_channels} features, cross-attention {numbers.context_dim}"


@dataclass(frozen=True, slots=True)
class _Signature:
    kind: Kind
    title: str
    test: Callable[[_Facts], str | None]
    """The reason why the file is of this kind, or None if it is not."""


def detect(header: Header) -> Detection:
    """Say what a file is, and why; milliseconds."""
    facts = _Facts(header)
    for signature in SIGNATURES:
        reason = signature.test(facts)
        if reason is not None:
            return Detection(signature.kind, signature.title, reason, facts.network)
    examples = ", ".join(map(readable, list(header.tensors)[:3])) or "none at all"
    reason = f"no known names among its tensors ({examples})"
    return Detection("unknown", "a file of an unknown kind", reason, None)


_LORA = re.compile(r".*[._](lora[._](down|up|mid|[AB])|hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks|dora_scale)\b.*")


def _lora(facts: _Facts) -> str | None:
    found = sum(1 for key in facts.keys if _LORA.fullmatch(key))
    return f"{found} of its {len(facts.keys)} tensors are factors that change the weights of a model" if found else None


def _controlnet(facts: _Facts) -> str | None:
    for prefix in ("control_model.", "input_hint_block.", "controlnet_cond_embedding.", "controlnet_down_blocks."):
        if facts.has(prefix):
            return f"has {prefix}*"
    return None


def _other_network(facts: _Facts) -> str | None:
    names = {"joint_blocks.": "SD 3", "double_blocks.": "Flux", "cascade_blocks.": "Stable Cascade"}
    for prefix, name in names.items():
        if facts.has(UNET + prefix) or facts.has(prefix):
            return f"has {prefix}*: {name}"
    return None


def _diffusers_unet(facts: _Facts) -> str | None:
    both = facts.has("down_blocks.") and facts.has("up_blocks.")
    return "has down_blocks.* and up_blocks.*, the names of the diffusers layout" if both else None


def _inpaint(facts: _Facts) -> str | None:
    return _channels(facts, 9, "latent, mask and masked latent")


def _edit(facts: _Facts) -> str | None:
    return _channels(facts, 8, "latent and latent of the picture to edit")


def _channels(facts: _Facts, count: int, what: str) -> str | None:
    numbers = facts.network
    if numbers is None or numbers.in_channels != count or numbers.adm_in_channels is None:
        return None
    return f"the network takes {count} channels ({what}); {facts.widths}"


_DISTILLED: Mapping[tuple[tuple[int, ...], int | None], str] = {
    ((0, 0, 2, 2, 4, 4), 0): "SSD-1B",
    ((0, 0, 1, 1, 2, 2), 0): "Segmind Vega",
    ((0, 2, 5), None): "KOALA-700M",
    ((0, 2, 6), 6): "KOALA-1B",
}


def _distilled(facts: _Facts) -> str | None:
    numbers = facts.network
    if numbers is None or numbers.model_channels != 320 or numbers.adm_in_channels is None:
        return None
    name = _DISTILLED.get((numbers.depths, numbers.middle_depth))
    middle = "no middle block" if numbers.middle_depth is None else f"{numbers.middle_depth} in the middle"
    return name and f"transformer depths {numbers.depths}, {middle}: {name}"


def _sd1(facts: _Facts) -> str | None:
    return _one_width(facts, 768)


def _sd2(facts: _Facts) -> str | None:
    return _one_width(facts, 1024)


def _one_width(facts: _Facts, width: int) -> str | None:
    numbers = facts.network
    if numbers is None or numbers.context_dim != width or not (facts.has("cond_stage_model.") or not _vector(facts)):
        return None
    return f"cross-attention takes {width} features" + ("" if _vector(facts) else ", and there is no label_emb")


def _vector(facts: _Facts) -> bool:
    return facts.network is not None and facts.network.adm_in_channels is not None


def _base(facts: _Facts) -> str | None:
    if not _vector(facts) or not (facts.clip and facts.open_clip(1)):
        return None
    return f"two text encoders, {facts.widths}"


def _refiner(facts: _Facts) -> str | None:
    if not _vector(facts) or not facts.open_clip(0):
        return None
    return f"one text encoder, {facts.widths}"


def _unet_only(facts: _Facts) -> str | None:
    return f"{facts.widths}, and there are no text encoders" if _vector(facts) else None


def _vae(facts: _Facts) -> str | None:
    if facts.has("first_stage_model."):
        return "has first_stage_model.* and no network"
    both = facts.has("encoder.conv_in.") and facts.has("decoder.conv_in.")
    return "has encoder.conv_in and decoder.conv_in, and no network" if both else None


def _text_encoder(facts: _Facts) -> str | None:
    for prefix in ("text_model.encoder.", "transformer.resblocks.", "conditioner.embedders.", "cond_stage_model."):
        if facts.has(prefix):
            return f"has {prefix}* and no network"
    return None


def _embedding(facts: _Facts) -> str | None:
    names = set(facts.keys)
    found = names & {"emb_params", "clip_l", "clip_g", "<concept>"}
    return f"has only {', '.join(map(readable, sorted(names)))}" if found and len(names) <= 3 else None


SIGNATURES: tuple[_Signature, ...] = (
    _Signature("lora", "a LoRA", _lora),
    _Signature("controlnet", "a ControlNet", _controlnet),
    _Signature("other_network", "a model of another family", _other_network),
    _Signature("diffusers_unet", "a UNet in the diffusers layout", _diffusers_unet),
    _Signature("inpaint", "an SDXL inpainting model", _inpaint),
    _Signature("edit", "an SDXL editing model", _edit),
    _Signature("distilled", "a shortened SDXL", _distilled),
    _Signature("sd1", "a Stable Diffusion 1 model", _sd1),
    _Signature("sd2", "a Stable Diffusion 2 model", _sd2),
    _Signature("base", "an SDXL base", _base),
    _Signature("refiner", "an SDXL refiner", _refiner),
    _Signature("unet_only", "an SDXL UNet alone", _unet_only),
    _Signature("vae", "a VAE alone", _vae),
    _Signature("text_encoder", "a text encoder alone", _text_encoder),
    _Signature("embedding", "a textual inversion embedding", _embedding),
)
"""Tried in this order; the first that gives a reason names the file."""


# At most four digits: a file may hold any text, and Python refuses to read a number of thousands of them.
_BLOCK = r"(input_blocks\.\d{1,4}|middle_block)\.\d{1,4}\.(in_layers|transformer_blocks\.\d{1,4})\..*"


def _network(header: Header, prefix: str) -> NetworkNumbers | None:
    """Read the numbers of a UNet in the original layout off its shapes."""

    def size(name: str, axis: int) -> int | None:
        info = header.tensors.get(prefix + name)
        return info.shape[axis] if info is not None and len(info.shape) > axis else None

    model_channels, in_channels = size("input_blocks.0.0.weight", 0), size("input_blocks.0.0.weight", 1)
    out_channels = size("out.2.weight", 0)
    if model_channels is None or in_channels is None or out_channels is None:
        return None
    block = re.compile(re.escape(prefix) + _BLOCK, re.ASCII)
    depths: dict[str, int] = {}
    contexts = set()
    for key, info in header.tensors.items():
        match = block.fullmatch(key)
        if match is None:
            continue
        name, layer = match.groups()
        depth = 0 if layer == "in_layers" else int(layer.rpartition(".")[2]) + 1
        depths[name] = max(depth, depths.get(name, 0))
        if key.endswith("attn2.to_k.weight") and len(info.shape) == 2:
            contexts.add(info.shape[1])
    middle = depths.pop("middle_block", None)
    in_order = sorted(depths, key=lambda name: int(name.rpartition(".")[2]))
    return NetworkNumbers(
        model_channels=model_channels,
        in_channels=in_channels,
        out_channels=out_channels,
        context_dim=max(contexts, default=None),
        adm_in_channels=size("label_emb.0.0.weight", 1),
        depths=tuple(depths[name] for name in in_order),
        middle_depth=middle,
    )
