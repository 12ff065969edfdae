"""Everything that one picture depends on, as one frozen value. Imports no torch.

A plan is what `--dry-run` prints, what the pipeline runs and what a picture carries, so that it can be made again.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from sdxl_core.compat import Conventions, conventions_of, empty_negative
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.config import (
    Config,
    Decoding,
    DenoiserConfig,
    DiscretizationConfig,
    Finite,
    Positive,
    ProgramName,
    SamplerConfig,
)
from sdxl_core.diffusion.discretization import last_levels
from sdxl_core.diffusion.handover import Switch, find_switch, parse_handover
from sdxl_core.diffusion.interval import Cost, resolve_cost
from sdxl_core.diffusion.samplers import SAMPLERS, check_options, model_calls
from sdxl_core.diffusion.schedules import resolve_sigmas
from sdxl_core.diffusion.schedules.variants import as_program
from sdxl_core.errors import UsageError
from sdxl_core.guider_config import GuiderConfig
from sdxl_core.presets import DEFAULT, FLAGS, Preset
from sdxl_core.refiner import RefinerPlan, build_refiner_plan
from sdxl_core.resolutions import Size, check_size, nearest_divisible, nearest_resolution
from sdxl_core.source import Source
from sdxl_core.texts import check_texts, paired_prompts

LARGEST_SEED = 2**64 - 1

Crop = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
PositiveSize = tuple[Positive, Positive]


class Plan(Config):
    """One picture; sizes are (height, width), made valid by `build_plan`.

    Args:
        model: name of the model preset.
        file: name of the model file, and its sha256 where it is known.
        vae: name of a separate first stage's file, or None for the one in the model file.
        prompt: read by both text towers, or by the first alone where `prompt_2` is given for the second; AND joins
            several, see `split_prompt`.
        compat: the program whose conventions these are; None for this one.
        conventions: what programs do differently.
        negative: likewise; see `empty_negative`.
        empty_negative: whether an empty negative prompt becomes zeros, as the base was trained, or is encoded.
        seed: of everything random in this picture.
        batch_row, batch_rows: which row of how many the picture is where `conventions.batch_noise` is one_stream.
        size: of the picture in pixels.
        original_size, crop_coords_top_left, target_size: what the network is told about the picture.
        aesthetic_score: 0 to 10, read by the refiner only, as is `negative_aesthetic_score`.
        denoiser: what the network predicts, and the trained noise levels.
        scale_factor, latent_mean, latent_std: how the model's latents were made of encodings, see `FirstStageConfig`.
        refiner: a second model that finishes the picture, or None.
        source: the picture that this one starts from, or None for noise alone.
        decoding: how the latent becomes the picture; `auto`, `whole` and `pieces` give the same one, to rounding.
        device, dtype, attention: `auto` until an engine has resolved them; the device by kind, without its number.
        passes: likewise, names of `sdxl_core.passes`: what was done for speed.
    """

    model: str
    file: str
    file_sha256: str | None = None
    vae: str | None = None
    vae_sha256: str | None = None
    prompt: str
    prompt_2: str | None = None
    negative: str = ""
    negative_2: str | None = None
    empty_negative: Literal["zeros", "encode"] = "zeros"
    compat: ProgramName | None = None
    conventions: Conventions = Conventions()
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    batch_row: Annotated[int, Field(ge=0)] = 0
    batch_rows: Positive = 1
    size: PositiveSize
    original_size: PositiveSize
    crop_coords_top_left: Crop = (0, 0)
    target_size: PositiveSize
    aesthetic_score: Finite = 6.0
    negative_aesthetic_score: Finite = 2.5
    steps: Positive
    sampler: SamplerConfig = SamplerConfig()
    discretization: DiscretizationConfig = DiscretizationConfig()
    guider: GuiderConfig = GuiderConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    scale_factor: Finite = 0.13025
    latent_mean: tuple[Finite, ...] | None = None
    latent_std: tuple[Finite, ...] | None = None
    refiner: RefinerPlan | None = None
    source: Source | None = None
    decoding: Decoding = "auto"
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    passes: Literal["auto"] | tuple[str, ...] = "auto"

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        check_options(self.sampler.name, self.sampler.options())
        if self.batch_row >= self.batch_rows:
            raise ValueError(f"batch_row {self.batch_row} is not below batch_rows {self.batch_rows}")
        self.guidance_cost(self.schedule())
        self.refiner_sigmas()
        joined = ("AND",) if len(self.requests()) > 1 else ()
        if self.edits and (more := (*joined, *self.guider.words())):
            raise UsageError(f"an editing model is guided by words and a picture alone, so {more[0]} has no effect")
        return self

    @property
    def edits(self) -> bool:
        """Whether a picture guides beside the words."""
        return self.source is not None and self.source.condition == "edit" and self.guider.name != "identity"

    def schedule(self) -> tuple[float, ...]:
        """The levels of the whole walk, whoever makes it, decreasing: steps + 1, or fewer where a picture starts.

        The last is 0 unless the schedule keeps some noise.
        """
        source, rule = self.source, self.conventions.strength
        steps = self.steps if source is None else source.schedule_steps(self.steps, exact=rule == "exact")
        levels = resolve_sigmas(self.discretization, steps, self.denoiser, self.conventions.drop_penultimate)
        if source is None:
            return levels
        exact = rule == "exact" or source.how.steps_exact
        return levels[-self.steps - 1 :] if exact else last_levels(levels, source.strength, rule)

    def sigmas(self) -> tuple[float, ...]:
        """The levels that the model walks: the whole schedule, or down to where a refiner goes on with it."""
        levels, switch = self.schedule(), self.switch()
        return levels if switch is None else levels[: switch.step + 1]

    def refiner_sigmas(self) -> tuple[float, ...]:
        """The levels that the refiner walks, decreasing; none without a refiner."""
        if self.refiner is None:
            return ()
        switch = self.switch()
        if switch is not None:
            return self.schedule()[switch.step :]
        drop_penultimate = self.conventions.drop_penultimate
        levels = resolve_sigmas(self.discretization, self.steps, self.refiner.denoiser, drop_penultimate)
        return last_levels(levels, parse_handover(self.refiner.mode).value)

    def switch(self) -> Switch | None:
        """Where the refiner takes over the same walk; None without one, or where it begins with noise of its own."""
        if self.refiner is None:
            return None
        handover = parse_handover(self.refiner.mode)
        if handover.unit == "strength":
            return None
        if handover.steps not in (None, self.steps):
            raise UsageError(f"{handover.text!r} speaks of {handover.steps} steps, and there are {self.steps}")
        return find_switch(handover, self.schedule(), self.refiner.denoiser)

    def refiner_plan(self) -> "Plan":
        """What the second model is told: the same picture as a plan for that model.

        Raises:
            ValueError: there is no refiner.
        """
        if self.refiner is None:
            raise ValueError("the plan has no refiner")
        own = self.refiner.model_dump(include={"model", "file", "file_sha256", "empty_negative"})
        return self.model_copy(update={**own, "denoiser": self.refiner.denoiser, "refiner": None, "source": None})

    def model_calls(self) -> int | None:
        """Evaluations of the networks that this picture takes; cond and uncond together are one.

        None where the sampler takes as many as the picture needs.
        """
        walks = [sigmas for sigmas in (self.sigmas(), self.refiner_sigmas()) if sigmas]
        calls = [model_calls(self.sampler.name, sigmas, self.sampler.options()) for sigmas in walks]
        return None if None in calls else sum(count for count in calls if count is not None)

    def guidance_cost(self, schedule: Sequence[float]) -> Cost:
        """Where guidance is on in a walk down a list of levels, and what a model call takes there."""
        keep_uncond = SAMPLERS[self.sampler.name].uncond
        return resolve_cost(self.guider, schedule, keep_uncond=keep_uncond, parts=len(self.requests()))

    def requests(self) -> tuple[tuple[ConditionRequest, float], ...]:
        """What the picture shall show: a request and its weight for each prompt that AND joins."""
        prompts = paired_prompts(self.prompt, self.prompt_2)
        return tuple((self._request(first, second, self.aesthetic_score), weight) for first, second, weight in prompts)

    def negative_request(self) -> ConditionRequest:
        """What guidance moves away from; the sizes are those of the picture."""
        return self._request(self.negative, self.negative_2, self.negative_aesthetic_score)

    def empty_request(self) -> ConditionRequest:
        """What `perp_neg` measures directions from."""
        return self._request("", None, self.negative_aesthetic_score)

    def _request(self, prompt: str, prompt_2: str | None, aesthetic_score: float) -> ConditionRequest:
        return ConditionRequest(
            prompt, prompt_2, self.original_size, self.crop_coords_top_left, self.target_size, aesthetic_score
        )

    @property
    def picture_size(self) -> Size:
        """(height, width) of what is written: `size`, but where a masked part alone is drawn at that size."""
        alone = self.source is not None and self.source.repaints_a_part and self.source.how.mask.only
        return self.source.canvas_size if alone and self.source is not None else self.size

    @property
    def zero_negative(self) -> bool:
        """Whether the text of the unconditional side is zeros instead of an encoding."""
        return self.empty_negative == "zeros" and not self.negative and not self.negative_2

    def with_seed(self, seed: int) -> Self:
        """The same picture from another seed, 0 .. 2^64 - 1."""
        check_seed(seed)
        return self.model_copy(update={"seed": seed})

    def pictures(self, count: int) -> list[Self]:
        """This picture and the next count - 1, each with noise of its own: seed + i, or row i of the same seed."""
        if self.conventions.batch_noise == "per_picture":
            return [self.with_seed(self.seed + i) for i in range(count)]
        return [self.model_copy(update={"batch_row": i, "batch_rows": count}) for i in range(count)]

    def shares_batch(self, other: "Plan") -> bool:
        """Whether both can be sampled in one batch: all that is not a matter of one row alone is equal.

        A sampler that finds its steps on the way finds others for each picture, so there every picture goes alone.
        """
        if SAMPLERS[self.sampler.name].calls is None:
            return False
        rows = {"prompt", "prompt_2", "negative", "negative_2", "seed", "batch_row", "original_size", "source"}
        rows |= {"crop_coords_top_left", "target_size", "aesthetic_score", "negative_aesthetic_score"}
        sources = [None if plan.source is None else plan.source.shared() for plan in (self, other)]
        if len(self.requests()) != len(other.requests()):
            return False
        return sources[0] == sources[1] and self.model_dump(exclude=rows) == other.model_dump(exclude=rows)

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives back an equal plan."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            UsageError: it is no JSON, not a plan, or a plan that cannot be run.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(step) for step in first["loc"])
            raise UsageError(f"this is no plan: {f'{place}: ' if place else ''}{first['msg']}") from None


def build_plan(
    preset: Preset,
    prompt: str,
    *,
    refiner: Preset | None = None,
    refiner_file: str | None = None,
    prompt_2: str | None = None,
    negative_2: str | None = None,
    seed: int = 0,
    source: Source | None = None,
    aspect: float | None = None,
    file: str | None = None,
    file_sha256: str | None = None,
    vae: str | None = None,
    vae_sha256: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    allow_empty_prompt: bool = False,
) -> Plan:
    """Join a preset with what is particular to one picture, and check that it can be made.

    Whatever a recipe can say (steps, size, guidance, sampler, ...) is in the preset already, flags included: see the
    overrides of `load_preset`.

    Args:
        preset: the model and how to run it.
        prompt: what to draw.
        refiner: the model that finishes the picture, in the mode of the preset's recipe; scores that the preset does
            not set are this one's.
        refiner_file: name of its file, None for the published one.
        prompt_2: read by the second text tower instead; None for the same.
        negative_2: likewise for the negative prompt.
        seed: 0 .. 2^64 - 1.
        source: the picture to start from; where the preset has no size, this one's is taken.
        aspect: width / height; takes the nearest of the published sizes instead of the preset's size.
        file: name of the model file, None for the published one; its sha256 is then the published one too.
        file_sha256: of `file`, where it is known.
        vae: name of a separate first stage's file.
        vae_sha256: of `vae`, where it is known.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, float16 or bfloat16.
        attention: auto or the name of a backend.
        allow_empty_prompt: an empty prompt is meant.

    Raises:
        UsageError: a value that cannot be honoured, with what could be instead.
    """
    model, recipe = preset.model, preset.recipe
    rules = recipe.compat, recipe.sampler.name
    texts = {"prompt": prompt, "prompt_2": prompt_2, "negative": recipe.negative, "negative_2": negative_2}
    check_texts(texts, allow_empty_prompt=allow_empty_prompt)
    check_seed(seed)
    size = _size(preset, aspect, source)
    if file is None:
        file, file_sha256 = model.file.name, model.file.sha256
    second = None if refiner is None else build_refiner_plan(preset, refiner, refiner_file)
    return Plan(
        model=model.name,
        file=file,
        file_sha256=file_sha256,
        vae=vae,
        vae_sha256=vae_sha256,
        prompt=prompt,
        prompt_2=prompt_2,
        negative_2=negative_2,
        empty_negative=empty_negative(recipe.compat, model.kind),
        compat=recipe.compat,
        conventions=conventions_of(*rules, recipe.discretization.name),
        seed=seed,
        size=size,
        original_size=recipe.original_size or size,
        **recipe.model_dump(include={"negative", "crop_coords_top_left", "decoding"}),
        target_size=recipe.target_size or size,
        aesthetic_score=_score(preset, refiner, "aesthetic_score"),
        negative_aesthetic_score=_score(preset, refiner, "negative_aesthetic_score"),
        steps=_steps(preset, second),
        sampler=recipe.sampler,
        discretization=as_program(*rules, recipe.discretization, recipe.steps, model.denoiser),
        guider=_guider(preset),
        denoiser=model.denoiser,
        **model.first_stage.model_dump(include={"scale_factor", "latent_mean", "latent_std"}),
        refiner=second,
        source=source,
        device=device,
        dtype=dtype,
        attention=attention,
    )


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        UsageError: not in 0 .. 2^64 - 1.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed {seed} is not between 0 and {LARGEST_SEED} (2^64 - 1)")


def _size(preset: Preset, aspect: float | None, source: Source | None) -> Size:
    size = preset.recipe.size or preset.model.native_size
    if source is not None and preset.recipe.size is None:
        size = nearest_divisible(source.canvas_size, preset.model.first_stage.factor)
    if aspect is not None:
        if preset.origins.get("recipe.size") == FLAGS:
            raise UsageError("a size and an aspect were given", hint="give one of the two")
        size = nearest_resolution(aspect, preset.model)
    check_size(size, preset.model)
    return size


def _score(preset: Preset, refiner: Preset | None, key: str) -> float:
    """A score of the preset or, where nobody gave it one, of the model that reads it."""
    own = refiner is None or preset.origins.get(f"recipe.{key}", DEFAULT) != DEFAULT
    score: float = getattr(preset.recipe if own or refiner is None else refiner.recipe, key)
    return score


def _steps(preset: Preset, refiner: RefinerPlan | None) -> int:
    """The recipe's steps or, where no flag gave them, those that the way of handing over speaks of."""
    said = None if refiner is None else parse_handover(refiner.mode).steps
    return preset.recipe.steps if said is None or preset.origins.get("recipe.steps") == FLAGS else said


def _guider(preset: Preset) -> GuiderConfig:
    guider = preset.recipe.guider
    if guider.name == "identity" and preset.origins.get("recipe.guider.scale") == FLAGS:
        raise UsageError(f"preset {preset.name!r} runs without guidance, so a guidance scale has no effect")
    guider.check_stages(preset.model.network.attended_stages())
    return guider
