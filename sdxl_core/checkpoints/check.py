"""Whether a file holds exactly the tensors that a model needs, told from its header. Imports no torch."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from sdxl_core.checkpoints.header import Header
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
    (re.compile(r"v_pred|ztsnr"), "marker of the prediction type"),
)
"""Keys that a sound file may hold beside the weights, and what they are."""


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
    missing = [key for key in expected if key not in header.tensors]
    misshaped = [
        f"{key} {_shape(header.tensors[key].shape)} instead of {_shape(shape)}"
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
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
