"""Flags to jobs: which model, which pictures, which file names. Loads no model and imports no torch."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sdxl_cli.cautions import warn_of_guidance, warn_of_levels, warn_of_lost_words, warn_of_resizing
from sdxl_cli.console import Console, shorten
from sdxl_cli.flags import DrawFlags
from sdxl_cli.options import (
    check_machine,
    full_dtype,
    parse_aspect,
    parse_choice,
    parse_crop,
    parse_guiders,
    parse_interval,
    parse_passes,
    parse_size,
)
from sdxl_cli.pictures import Pictures, Start, describe_strength, recorded_prompts, warn_of_size
from sdxl_cli.places import models_folders, pull_hint
from sdxl_cli.prompts import STDIN, gather_prompts
from sdxl_cli.refiners import Refiner, describe_handover, resolve_refiner
from sdxl_cli.schedules import parse_schedule, read_sigmas
from sdxl_core.checkpoints.check import check_network, differences, first_stage_prefix
from sdxl_core.checkpoints.detect import Detection, detect
from sdxl_core.checkpoints.find import find_file
from sdxl_core.checkpoints.header import Header, read_header
from sdxl_core.checkpoints.markers import Markers, adapt_model, named_prediction, read_markers
from sdxl_core.compat import resolve_program
from sdxl_core.config import PredictionName
from sdxl_core.diffusion.samplers import check_options
from sdxl_core.errors import CheckpointError, PresetError, SdxlError, UsageError
from sdxl_core.guider_config import GUIDANCE_METHODS
from sdxl_core.naming import Destination, NameFields, Names, resolve_destination
from sdxl_core.plan import Plan, build_plan
from sdxl_core.prediction import prediction_name, resolve_prediction
from sdxl_core.presets import Preset, list_presets, load_preset

DEFAULT_PRESET, FALLBACK_PRESET = "sdxl-base-1.0", "micro"
# Of models of a published network that were trained over a range of levels.
RANGE_PRESETS = {DEFAULT_PRESET: "sdxl-edm", "sdxl-edit": "sdxl-edit-edm"}
MOST_PICTURES = 100_000  # every one of them is planned before the first is drawn
LATENT_SUFFIX = ".latent.safetensors"
_FLAG_OF = {
    "recipe.compat": "--compat",
    "recipe.prediction": "--prediction",
    "recipe.shift": "--shift",
    "recipe.steps": "--steps",
    "recipe.negative": "--negative",
    "recipe.size": "--size",
    "recipe.original_size": "--original-size",
    "recipe.target_size": "--target-size",
    "recipe.crop_coords_top_left": "--crop",
    "recipe.guider": "--guider",
    "recipe.guider.scale": "--guidance",
    "recipe.guider.interval": "--guidance-interval",
    "recipe.refiner.mode": "--refine",
    "recipe.aesthetic_score": "--aesthetic-score",
    "recipe.negative_aesthetic_score": "--negative-score",
    **{f"recipe.guider.{method}": f"--guider {method}" for method in GUIDANCE_METHODS},
    "recipe.decoding": "--decoding",
    "recipe.sampler": "--sampler",
    "recipe.discretization": "--schedule",
    "recipe.source.strength": "--strength",
    "recipe.source.image_guidance": "--image-guidance",
    "recipe.source.mask.grow": "--mask-grow",
    "recipe.source.mask.blur": "--mask-blur",
    "recipe.source.mask.padding": "--mask-padding",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One picture, the file that it goes to, and what it starts from if not from noise alone."""

    plan: Plan
    fields: NameFields
    path: Path
    start: Start | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that a command line asks for.

    Args:
        preset: the model as its file was trained, and how to run it.
        predicts: what the network predicts, and what says so.
        model_path: the model file; None where it is missing and nothing will be drawn.
        vae_path: a file with another first stage.
        refiner: the model that finishes the pictures.
        names: hands out further names, should one be taken meanwhile.
        jobs: one a picture, in order.
        left_out: why files that a drawing should have started from were left out.
    """

    preset: Preset
    predicts: str
    model_path: Path | None
    vae_path: Path | None
    refiner: Refiner | None
    names: Names
    jobs: tuple[Job, ...]
    left_out: tuple[SdxlError, ...] = ()


def resolve_run(flags: DrawFlags, prompts: Sequence[str], console: Console, pictures: Pictures | None = None) -> Run:
    """Everything that can be checked before a model is loaded.

    Args:
        flags: of the command.
        prompts: the arguments that are prompts; `-` stands for standard input.
        console: where notes go.
        pictures: to start from; without prompts each picture's own is taken.

    Raises:
        UsageError: a flag, a prompt or a preset that cannot be honoured.
        PictureError: no picture that can be used.
        CheckpointError: a model file that is missing or of the wrong kind, or a --vae without one.
        OutputError: a file name that is taken.
    """
    for name, value in (("--count", flags.count), ("--batch-size", flags.batch_size)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    check_machine(flags.device, flags.dtype, flags.attention)
    parse_passes(flags.passes)
    asked = prompts or (["anything"] if flags.print_config and flags.prompts_file is None else [])
    if flags.sigmas == STDIN and STDIN in (*asked, str(flags.prompts_file)):
        raise UsageError("standard input can be read only once", hint=f"give {STDIN!r} once")
    given = pictures is None or bool(asked) or flags.prompts_file is not None
    prompts = gather_prompts(asked, flags.prompts_file) if given else []
    _check_count(flags.count * max(len(prompts), 1) * (1 if pictures is None else len(pictures.paths)))
    destination = resolve_destination(flags.output, flags.format)
    # Before a model is asked for, which may have to be fetched first.
    own = {} if given or pictures is None else recorded_prompts(pictures)
    preset, header = _choose_model(flags, _overrides(flags, console, pictures), console)
    preset, predicts = _as_trained(preset, header, console)
    model_path = None if header is None else header.path
    if pictures is None and preset.model.kind in ("inpaint", "edit"):
        raise UsageError(
            f"{preset.model.name} draws from pictures, not from words alone",
            hint='sdxl img2img photo.png "a cat", with --mask FILE for an inpainting model',
        )
    vae_path = None if flags.vae is None else find_file(flags.vae, models_folders())
    if vae_path is not None:
        first_stage_prefix(read_header(vae_path))
    refiner = resolve_refiner(flags, preset)
    wanted: list[tuple[str, Start | None]] = [(prompt, None) for prompt in prompts]
    if pictures is not None:
        starts = pictures.starts(preset, console)
        wanted = [(prompt, start) for start in starts for prompt in (prompts if given else [own[start.picture]])]
    plans = _plans(flags, console, wanted, preset, model_path, vae_path, refiner)
    names, jobs = _name(plans, destination, flags)
    left_out = () if pictures is None else tuple(pictures.failures)
    return Run(preset, predicts, model_path, vae_path, refiner, names, jobs, left_out)


def _check_count(pictures: int) -> None:
    if pictures > MOST_PICTURES:
        raise UsageError(f"{pictures} pictures are too many for one run (at most {MOST_PICTURES})")


def recipe_table(run: Run) -> dict[str, Any]:
    """The resolved recipe, as a preset file that builds on the model alone."""
    kind, _, name = run.preset.origins["model.name"].partition(" ")
    plan, recipe = run.jobs[0].plan, run.preset.recipe.model_dump()
    recipe |= {"size": plan.size} | ({} if plan.source is None else {"source": plan.source.how.model_dump()})
    recipe |= {"sampler": plan.sampler.model_dump(), "discretization": plan.discretization.model_dump()}
    return {"base": str(Path(name).resolve()) if kind == "file" else name, "recipe": recipe}


def _choose_model(flags: DrawFlags, overrides: Mapping[str, Any], console: Console) -> tuple[Preset, Header | None]:
    folders = models_folders()
    if flags.model is not None:
        header = read_header(find_file(flags.model, folders))
        found = detect(header)
        preset = _load(flags.preset or preset_for(found, read_markers(header).prediction), overrides)
        check_network(header, preset.model)
        console.note(f"{header.path.name} is {found.title} ({found.reason})")
        return preset, header
    name = flags.preset
    if name is None:
        name = DEFAULT_PRESET if _published(DEFAULT_PRESET, folders) else FALLBACK_PRESET
        if name == FALLBACK_PRESET:
            console.note(
                f"no SDXL file was found, so this is {FALLBACK_PRESET}, the small model in the package; "
                f"'sdxl pull {DEFAULT_PRESET}' fetches SDXL"
            )
    preset = _load(name, overrides)
    try:
        path = find_file(preset.model.file.name, folders, hint=pull_hint(preset.model))
    except CheckpointError:
        if flags.dry_run or flags.print_config:
            return preset, None
        raise
    header = read_header(path)
    check_network(header, preset.model)
    return preset, header


def _as_trained(preset: Preset, header: Header | None, console: Console) -> tuple[Preset, str]:
    """The preset with what the recipe or else the file says of the network's prediction, and that in words."""
    markers = Markers() if header is None else read_markers(header)
    asked = preset.recipe.prediction
    model, reason = adapt_model(preset.model, markers, asked, preset.recipe.shift)
    name = prediction_name(model.denoiser)
    if header is not None and markers.prediction is not None:
        if asked is not None or name != prediction_name(preset.model.denoiser):  # else the preset has said it
            against = "" if asked in (None, markers.prediction) else f", though the file {markers.reason}"
            console.note(f"{header.path.name} predicts {name} ({reason}{against})")
    elif header is not None and asked is None and name == "eps" and (hinted := named_prediction(header.path)):
        console.warn(
            f"{header.path.name} predicts eps ({reason}), but its name speaks of {hinted}: "
            f"add --prediction {hinted} if its pictures are noise or grey"
        )
    return replace(preset, model=model), f"{name} ({reason})"


def _published(name: str, folders: Sequence[Path]) -> bool:
    try:
        find_file(load_preset(name).model.file.name, folders)
    except CheckpointError:
        return False
    return True


def preset_for(found: Detection, prediction: PredictionName | None) -> str:
    """The preset whose network is the file's; the published base where none is, whose loading will then say why."""
    name = _model_preset_for(found)
    return RANGE_PRESETS.get(name, name) if prediction in ("edm", "edm_v") else name


def _model_preset_for(found: Detection) -> str:
    for entry in list_presets():
        if entry.kind != "model":
            continue
        model = load_preset(entry.name).model
        if model.kind == found.kind != "refiner" and not differences(found, model):
            return entry.name
    return DEFAULT_PRESET


def _overrides(flags: DrawFlags, console: Console, pictures: Pictures | None) -> dict[str, Any]:
    sampler, sampler_options = parse_choice(flags.sampler, "--sampler")
    if sampler is not None:
        try:
            check_options(sampler, sampler_options)
        except UsageError as error:
            raise UsageError(f"--sampler: {error.message}", hint=error.hint) from None
    if flags.prediction is not None:
        resolve_prediction(flags.prediction)
    if flags.compat is not None:
        resolve_program(flags.compat)
    return {
        "recipe.negative": flags.negative,
        "recipe.compat": flags.compat,
        "recipe.prediction": flags.prediction,
        "recipe.shift": flags.shift,
        "recipe.steps": flags.steps,
        "recipe.guider.scale": flags.guidance,
        "recipe.guider.interval": parse_interval(flags.guidance_interval),
        **parse_guiders(flags.guider or ()),
        "recipe.refiner.use": flags.refiner,
        "recipe.refiner.mode": flags.refine,
        "recipe.aesthetic_score": flags.aesthetic_score,
        "recipe.negative_aesthetic_score": flags.negative_aesthetic_score,
        "recipe.decoding": flags.decoding and flags.decoding.value,
        "recipe.sampler.name": sampler,
        **{f"recipe.sampler.{key}": value for key, value in sampler_options.items()},
        **_levels(flags, console),
        "recipe.size": parse_size(flags.size, "--size"),
        "recipe.original_size": parse_size(flags.original_size, "--original-size"),
        "recipe.target_size": parse_size(flags.target_size, "--target-size"),
        "recipe.crop_coords_top_left": parse_crop(flags.crop),
        **({} if pictures is None else pictures.overrides()),
    }


def _levels(flags: DrawFlags, console: Console) -> dict[str, Any]:
    """What --schedule or --sigmas say; a list brings its own number of steps."""
    if flags.sigmas is None:
        if flags.schedule is None:
            return {}
        name, options = parse_schedule(flags.schedule, "--schedule")
        return {"recipe.discretization.name": name, **{f"recipe.discretization.{k}": v for k, v in options.items()}}
    if flags.schedule is not None:
        raise UsageError("--schedule and --sigmas exclude each other")
    sigmas = read_sigmas(flags.sigmas)
    steps = len(sigmas) - 1
    if flags.steps not in (None, steps):
        raise UsageError(f"--sigmas takes {steps} steps, --steps says {flags.steps}", hint="leave --steps out")
    if sigmas[-1] > 0:
        console.warn(f"the list ends at {sigmas[-1]:g}, so noise of that level stays in the picture; 0 takes it away")
    return {
        "recipe.discretization.name": "explicit",
        "recipe.discretization.sigmas": sigmas,
        "recipe.steps": steps,
    }


def _load(name: str, overrides: Mapping[str, Any]) -> Preset:
    """The preset with the flags laid over it; an error about a flag speaks of the flag."""
    try:
        return load_preset(name, overrides)
    except PresetError as error:
        match = re.fullmatch(r"flags: (recipe(?:\.\w+)+)(?:\[\d+\])?: (.*)", error.message, re.DOTALL)
        if match is None:
            raise
        key, text = match[1], match[2]
        flag_name = _FLAG_OF.get(key)
        if flag_name is None:
            parent, _, option = key.rpartition(".")
            flag_name = f"{_FLAG_OF.get(parent, parent)}: {option}"
        raise PresetError(f"{flag_name}: {text}", hint=error.hint) from None


def _plans(
    flags: DrawFlags,
    console: Console,
    wanted: Sequence[tuple[str, Start | None]],
    preset: Preset,
    model_path: Path | None,
    vae_path: Path | None,
    refiner: Refiner | None,
) -> list[tuple[Plan, Start | None]]:
    seed = secrets.randbelow(2**32) if flags.seed is None else flags.seed
    plans: list[tuple[Plan, Start | None]] = []
    for number, (prompt, start) in enumerate(wanted, 1):
        try:
            first = build_plan(
                preset,
                prompt,
                refiner=None if refiner is None else refiner.preset,
                refiner_file=None if refiner is None or refiner.path is None else refiner.path.name,
                prompt_2=flags.prompt_2,
                negative_2=flags.negative_2,
                seed=seed,
                source=None if start is None else start.source,
                aspect=parse_aspect(flags.aspect) if start is None else start.aspect,
                file=None if model_path is None else model_path.name,
                vae=None if vae_path is None else vae_path.name,
                device=flags.device,
                dtype=full_dtype(flags.dtype),
                attention=flags.attention,
            ).model_copy(update={"passes": parse_passes(flags.passes)})
        except UsageError as error:
            if len(wanted) == 1 or not error.message.startswith("the prompt"):
                raise
            raise UsageError(f"prompt {number} of {len(wanted)}: {error.message}", hint=error.hint) from None
        warn_of_lost_words(first, preset.model, console)
        if number == 1:
            warn_of_guidance(first, console)
            warn_of_levels(first, preset.model, None if refiner is None else refiner.preset.model, console)
        if start is not None:
            warn_of_size(first, preset.model, console)
            warn_of_resizing(first, console)
        plans += [(plan, start) for plan in first.pictures(flags.count)]
    if flags.seed is None and not flags.print_config:
        console.note(f"seed {seed}")
    if plans[0][0].source is not None and not flags.print_config:
        console.note(f"strength {describe_strength(plans[0][0])}")
    if refiner is not None and not flags.print_config:
        console.note(f"refiner {describe_handover(plans[0][0])}")
    return plans


def _name(
    plans: Sequence[tuple[Plan, Start | None]], destination: Destination, flags: DrawFlags
) -> tuple[Names, tuple[Job, ...]]:
    names = Names(destination, flags.overwrite, LATENT_SUFFIX if flags.save_latents else "")
    when = datetime.now()
    fields = [
        NameFields(
            seed=plan.seed,
            prompt=plan.prompt,
            width=plan.picture_size[1],
            height=plan.picture_size[0],
            steps=plan.steps,
            sampler=plan.sampler.name,
            preset=plan.model,
            when=when,
            source="" if start is None else start.picture.stem,
        )
        for plan, start in plans
    ]
    names.check(fields[0], len(plans))
    pairs = zip(plans, fields, strict=True)
    return names, tuple(Job(plan, field, names.next(field), start) for (plan, start), field in pairs)


def describe_failure(job: Job, number: int, of: int, error: SdxlError) -> str:
    """One sentence that says which picture failed."""
    return f"picture {number} of {of} (seed {job.plan.seed}, {shorten(job.plan.prompt, 40)!r}): {error.message}"
