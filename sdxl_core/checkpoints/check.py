"""Whether a file holds exactly the tensors that a model needs, told from its header. Imports no torch."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from sdxl_core.checkpoints.detect import Detection, Kind, detect
from sdxl_core.checkpoints.header import Header, readable
from sdxl_core.config import ModelConfig
from sdxl_core.errors import CheckpointError

Shapes = Mapping[str, Sequence[int]]
"""Full key in the file -> shape."""

IGNORABLE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"model_ema\..*"), "averaged weights of training"),
    (re.compile(r".*\.position_ids"), "token positions, always 0 to 76"),
    (re.compile(r"conditioner\.embedders\.\d+\.(model\.)?logit_scale"), "scale of contrastive training"),
    (
        re.compile(r"conditioner\.embedders\.0\.transformer\.text_projection\.weight"),
        "projection SDXL does not use",
    ),
    (
        re.compile(r"denoiser\.sigmas|(log_|sqrt_)*(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|betas"),
        "noise table",
    ),
    (re.compile(r"posterior_(variance|log_variance_clipped|mean_coef[12])"), "noise table"),
    (re.compile(r"(first_stage_model\.)?loss\..*"), "loss of training"),
    (re.compile(r"v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.sigma_(min|max)"), "marker of the prediction type"),
)
"""Keys that a sound file may hold beside the weights, and what they are."""

SPARE = re.compile(r".*\.logit_scale")
"""Keys that converted files may lack: no picture depends on them."""

_ADVICE: Mapping[Kind, str] = {
    "base": "a base draws pictures: give it as the model, or choose a base preset, e.g. sdxl-base-1.0",
    "refiner": "a refiner finishes pictures: give it as the refiner, or choose its preset, e.g. sdxl-refiner-1.0",
    "lora": "a LoRA changes a model and cannot stand for one: give the model itself",
    "vae": "a VAE is one part of a model: give the model itself, and this file as the VAE",
    "diffusers_unet": "give the single-file .safetensors of the same model",
}


def check_network(header: Header, model: ModelConfig) -> None:
    """Check that the network in a file is the one that a preset describes, before anything is built for its tensors.

    Raises:
        CheckpointError: it is another kind of model, or one of another size.
    """
    found = detect(header)
    if found.kind != model.file_kind:
        raise CheckpointError(
            f"{header.path}: preset {model.name} needs an SDXL {model.kind}, this is {found.title} ({found.reason})",
            hint=_ADVICE.get(found.kind, "give an SDXL base or refiner as one .safetensors file"),
        )
    unlike = differences(found, model)
    if unlike:
        raise CheckpointError(
            f"{header.path}: not the network of preset {model.name}: {', '.join(unlike)}",
            hint="choose the preset that describes this file",
        )


def check_model(header: Header, model: ModelConfig, expected: Shapes, unused: Collection[str] = ()) -> Counter[str]:
    """Check that a file is the model that a preset describes.

    Args:
        header: the file.
        model: what the preset says.
        expected: full key -> shape of every tensor that the model's modules need.
        unused: prefixes that may be in the file though nothing takes them (a first stage that is read elsewhere).

    Returns:
        What was passed over, as reason -> number of keys.

    Raises:
        CheckpointError: it is another kind of model, one of another size, or its tensors do not match.
    """
    check_network(header, model)
    return check_keys(header, expected, unused=unused)


def first_stage_prefix(header: Header) -> str:
    """The prefix of the first stage's keys: `first_stage_model.`, or nothing in most files of the VAE alone.

    Raises:
        CheckpointError: the file has no first stage in the original layout.
    """
    for prefix in ("first_stage_model.", ""):
        if f"{prefix}decoder.mid.block_1.norm1.weight" in header.tensors:
            return prefix
    found = detect(header)
    raise CheckpointError(
        f"{header.path}: no VAE in the original layout: this is {found.title} ({found.reason})",
        hint="give a single-file VAE such as sdxl_vae.safetensors",
    )


def differences(found: Detection, model: ModelConfig) -> list[str]:
    """In what the network of a file of the model's kind is not the preset's, `KEY x instead of y` each.

    What it predicts is no difference: a model takes that from its file, see `sdxl_core.checkpoints.markers`.
    """
    keys = ("model_channels", "in_channels", "out_channels", "context_dim", "adm_in_channels")
    pairs = [(key, getattr(found.network, key), getattr(model.network, key)) for key in keys]
    return [f"{key} {has} instead of {wanted}" for key, has, wanted in pairs if has != wanted]


def check_keys(
    header: Header, expected: Shapes, prefixes: Collection[str] = ("",), unused: Collection[str] = ()
) -> Counter[str]:
    """Compare names and shapes with what the modules need.

    Args:
        header: the file.
        expected: every tensor that the modules need.
        prefixes: only keys that start with one of them may be unexpected.
        unused: prefixes that may be in the file though nothing takes them (a first stage that is read elsewhere).

    Returns:
        What was passed over, as reason -> number of keys.

    Raises:
        CheckpointError: counts the missing, unexpected and mis-shaped keys and names up to 3 of each.
    """
    passed_over: Counter[str] = Counter()
    unexpected = []
    for key in header.tensors:
        if key in expected or not key.startswith(tuple(prefixes)):
            continue
        reason = "not used from this file" if key.startswith(tuple(unused)) else _ignorable(key)
        if reason is None:
            unexpected.append(key)
        else:
            passed_over[reason] += 1
    missing = [key for key in expected if key not in header.tensors and not SPARE.fullmatch(key)]
    misshaped = [
        f"{readable(key)} {_shape(header.tensors[key].shape)} instead of {_shape(shape)}"
        for key, shape in expected.items()
        if key in header.tensors and tuple(shape) != header.tensors[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
    problems = [f"{len(keys)} {kind} ({_examples(keys)})" for kind, keys in kinds if keys]
    if problems:
        raise CheckpointError(
            f"{header.path}: its tensors are not the model's: {'; '.join(problems)}",
            hint="see what the file is with `sdxl inspect`, and choose the preset that describes it",
        )
    return passed_over


def _ignorable(key: str) -> str | None:
    return next((reason for pattern, reason in IGNORABLE if pattern.fullmatch(key)), None)


def _examples(keys: Sequence[str]) -> str:
    return ", ".join(map(readable, keys[:3])) + (", ..." if len(keys) > 3 else "")


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
