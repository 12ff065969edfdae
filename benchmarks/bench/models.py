"""The same weights in our engine and in diffusers' parts, and the inputs of both."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.figures import Facts
from bench.turns import Contender
from sdxl_core.config import ModelConfig, OpenClipTextConfig, SizeEmbedderConfig
from sdxl_core.engine import Engine, load_engine
from sdxl_core.passes import apply_passes
from sdxl_core.plan import Plan, build_plan
from sdxl_core.presets import Preset, load_preset

PartName = Literal["text", "network", "first stage"]

EVERYTHING: tuple[PartName, ...] = ("text", "network", "first stage")

_PHRASES = (
    "a red apple on a blue table",
    "a small house in the snow",
    "an old ship under a stormy sky",
    "two cats asleep",
    "a bowl of soup seen from above",
    "a brass clock",
    "green hills at dawn",
    "a portrait in oil",
    "wide angle",
    "soft light",
    "35mm",
    "pencil",
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model file and how pictures are drawn with it, in words that every contender understands.

    Args:
        preset: name of the preset; sampler and schedule are Euler on the original's levels, which diffusers has too.
        file: the weights.
        size: (height, width) in pixels.
        steps: of a whole picture.
    """

    preset: str
    file: Path
    size: tuple[int, int]
    steps: int

    def loaded(self) -> Preset:
        """The preset with these sizes and steps, and plain guidance."""
        recipe = {
            "recipe.size": self.size,
            "recipe.steps": self.steps,
            "recipe.sampler.name": "euler",
            "recipe.discretization.name": "legacy_ddpm",
            "recipe.guider.name": "vanilla_cfg",
        }
        return load_preset(self.preset, overrides=recipe)

    @property
    def config(self) -> ModelConfig:
        """What the weights are."""
        return self.loaded().model

    @property
    def latent(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        first_stage = self.config.first_stage
        return first_stage.z_channels, self.size[0] // first_stage.factor, self.size[1] // first_stage.factor

    def plan(self, seed: int) -> Plan:
        """A picture with words and noise of that seed."""
        return build_plan(self.loaded(), prompt_of(seed), seed=seed)


def prompt_of(seed: int) -> str:
    """A prompt of two to five phrases, another for nearly every seed."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 6, (), generator=generator))
    return ", ".join(_PHRASES[i] for i in torch.randperm(len(_PHRASES), generator=generator)[:count].tolist())


def our_engine(model: Model, contender: Contender, device: str, *parts: PartName) -> tuple[Engine, Facts]:
    """Our model as the program runs it, without its passes, or with eight bits; only parts that take part are kept."""
    engine = load_engine(model.config, model.file, device=device, dtype=contender.dtype)
    modules = {"text": engine.conditioner, "network": engine.network, "first stage": engine.first_stage}
    facts = _facts({part: modules[part] for part in parts})  # before the passes: what they pack is no parameter
    fields = {"text": "conditioner", "network": "network", "first stage": "first_stage"}
    unused: dict[str, Any] = {field: None for part, field in fields.items() if part not in parts}
    before = engine.first_stage_dtype
    passed = apply_passes(engine, {"ours plain": (), "ours fp8": ("auto", "fp8")}.get(contender.name))
    if "first stage" in parts:
        facts = _in_dtype(facts, before, passed.first_stage_dtype)
    return replace(passed, **unused), facts


def _in_dtype(facts: Facts, before: torch.dtype, now: torch.dtype) -> Facts:
    """Facts of a first stage whose weights have been brought to another dtype."""
    size = facts.weights_bytes["first stage"] * now.itemsize // before.itemsize
    precision = facts.precision | {"first stage": str(now).removeprefix("torch.")}
    return Facts(precision, facts.weights_bytes | {"first stage": size})


def their_parts(model: Model, dtype: str, device: str, *parts: PartName) -> dict[str, Any]:
    """diffusers' and transformers' modules, filled from the file without any code of ours but tables of names.

    In float16 the first stage is float32, as diffusers itself would make it for every decode.
    """
    from safetensors import safe_open
    from support_chain import big_g, clip_l, tokenizer
    from support_diffusers import diffusers_unet, diffusers_vae

    config, precision = model.config, getattr(torch, dtype)

    def under(prefix: str, kind: torch.dtype) -> dict[str, Tensor]:
        with safe_open(model.file, "pt", device=device) as tensors:
            keys = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118 (it is no mapping)
            return {key: tensors.get_tensor(key).to(kind) for key in keys}

    def named(prefix: str, kind: torch.dtype) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in under(prefix, kind).items()}

    found: dict[str, Any] = {}
    if "network" in parts:
        weights = named("model.diffusion_model.", precision)
        found["unet"] = diffusers_unet(weights, config.network, addition_time_embed_dim=_outdim(config))
    if "first stage" in parts:
        kind = torch.float32 if precision is torch.float16 else precision
        found["vae"] = diffusers_vae(named("first_stage_model.", kind), config.first_stage)
    if "text" in parts:
        tensors = under("conditioner.", precision)
        found["text_encoder"] = clip_l(tensors, config).to(device, precision)
        found["text_encoder_2"] = big_g(tensors, config, 1).to(device, precision)
        found["tokenizer"], found["tokenizer_2"] = tokenizer("<|endoftext|>"), tokenizer("!")
    return found


def their_pipeline(model: Model, dtype: str, device: str) -> Any:
    """diffusers' whole pipeline."""
    parts = their_parts(model, dtype, device, *EVERYTHING)
    parts["vae"].to(getattr(torch, dtype))  # the pipeline itself makes it float32 for each decode, and 16 bit again
    import transformers
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from support_chain import SDXL_BETAS

    kind = "v_prediction" if model.config.denoiser.scaling == "v" else "epsilon"
    spacing = {"timestep_spacing": "leading", "steps_offset": 1}  # as the published configuration has it
    scheduler = EulerDiscreteScheduler(**SDXL_BETAS, **spacing, prediction_type=kind)
    pipeline = StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    transformers.utils.logging.disable_progress_bar()
    return pipeline


def their_facts(parts: dict[str, Any]) -> Facts:
    """Of diffusers' modules."""
    named = {"text": ("text_encoder", "text_encoder_2"), "network": ("unet",), "first stage": ("vae",)}
    return _facts(
        {
            part: nn.ModuleList(parts[name] for name in names)
            for part, names in named.items()
            if all(name in parts for name in names)
        }
    )


def _facts(modules: dict[Any, nn.Module]) -> Facts:
    precision = {part: str(next(module.parameters()).dtype).removeprefix("torch.") for part, module in modules.items()}
    return Facts(precision, {part: sum(p.nbytes for p in module.parameters()) for part, module in modules.items()})


def told_numbers(model: Model) -> Tensor:
    """(1, n) what the size embedders are told of a picture, in the order of the config."""
    values = {"original_size": model.size, "crop_coords_top_left": (0, 0), "target_size": model.size}
    scores = {"aesthetic_score": (6.0,)}
    embedders = model.config.conditioner.embedders
    keys = [e.input_key for e in embedders if isinstance(e, SizeEmbedderConfig)]
    return torch.tensor([[float(number) for key in keys for number in (values | scores)[key]]])


def pooled_width(model: Model) -> int:
    """Features of the pooled prompt."""
    return next(e.width for e in model.config.conditioner.embedders if isinstance(e, OpenClipTextConfig))


def _outdim(config: ModelConfig) -> int:
    return next(e.outdim for e in config.conditioner.embedders if isinstance(e, SizeEmbedderConfig))


def sinusoids(model: Model, numbers: Tensor) -> Tensor:
    """(1, n * outdim) features of the numbers, as the network's vector ends."""
    from sdxl_core.ops.layers import sinusoid

    return sinusoid(numbers.flatten(), _outdim(model.config)).view(1, -1)
