"""Pictures on the command line: which files, which prompts, and what each drawing starts from."""

import glob
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sdxl_cli.console import Console, print_error
from sdxl_cli.options import parse_aspect
from sdxl_cli.picture_flags import Img2ImgFlags, RefineFlags
from sdxl_core.canvas import Canvas, build_canvas, check_mask, spread
from sdxl_core.config import ModelConfig, SourceConfig
from sdxl_core.errors import SdxlError, UsageError
from sdxl_core.latent_files import SavedLatent, check_latent, latent_source, read_latent
from sdxl_core.masks import bounds
from sdxl_core.picture_files import PictureError, read_record
from sdxl_core.plan import Plan
from sdxl_core.presets import Preset, list_presets, load_preset
from sdxl_core.source import Source, build_source
from sdxl_core.source_pictures import Pixels, SourcePicture, parse_colour, read_mask, read_picture

INPUT = "input"
"""The --aspect that is each picture's own."""

DEFAULT_REFINER = "sdxl-refiner-1.0"

REFINE_STRENGTH = 0.15
"""How far `sdxl refine` goes back where neither flag nor preset says: any model, a refiner or not, goes over it."""

LATENT = ".safetensors"
"""How the name of a saved latent ends."""

_PICTURE_NAME = re.compile(r"\S+\.(png|jpe?g|webp|tiff?|bmp|gif|avif|heic)", re.IGNORECASE)
_MARGINS = re.compile(r"(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})", re.ASCII)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Start:
    """What one drawing starts from.

    Args:
        source: what its plan says.
        picture: the file.
        mask: the file of its mask.
        aspect: width / height that the drawing shall have; None for the preset's size or the picture's own.
    """

    source: Source
    picture: Path
    mask: Path | None
    aspect: float | None

    def latent(self) -> SavedLatent:
        """Read the latent again.

        Raises:
            PictureError: it is another one by now.
        """
        latent = read_latent(self.picture)
        factor = self.source.picture.size[0] // latent.values.shape[1]
        if latent_source(latent, factor).sha256 != self.source.picture.sha256:
            raise PictureError(f"{self.picture}: it was changed while this was running")
        return latent

    def canvas(self, plan: Plan) -> Canvas:
        """Read the files again and lay them out at the plan's size.

        Raises:
            PictureError: a file went away, or is another one by now.
        """
        how = self.source.how
        picture = _unchanged(self.picture, read_picture(self.picture, how.background), self.source.picture.sha256)
        mask = None
        if self.mask is not None and self.source.mask is not None:
            mask = _unchanged(self.mask, read_mask(self.mask), self.source.mask.sha256)
        return build_canvas(self.source, plan.size, picture, mask)


@dataclass(slots=True)
class Pictures:
    """What a command line says of pictures.

    Args:
        paths: the files, at least one; fewer when some are left out.
        prompts: those among the arguments and flags; none where a file of prompts, or each picture's own, is taken.
        flags: the rest.
        strength: where neither flags nor preset say one; None for what `build_source` takes.

    Attributes:
        failures: why files were left out.
    """

    paths: tuple[Path, ...]
    prompts: tuple[str, ...]
    flags: Img2ImgFlags
    strength: float | None = None
    failures: list[SdxlError] = field(default_factory=list, init=False)

    def each(self, work: Callable[[Path], T]) -> list[T]:
        """What is made of every file; one that it cannot be made of is said, and left out from now on.

        Raises:
            SdxlError: it cannot be made of the last one that is left; its exit code is that of the first failure.
        """
        made = []
        for path in self.paths:
            try:
                made.append(work(path))
            except SdxlError as error:
                if len(self.paths) == 1:
                    error.exit_code = [*self.failures, error][0].exit_code
                    raise
                print_error(error.message, error.hint)
                self.failures.append(error)
                self.paths = tuple(other for other in self.paths if other is not path)
        return made

    def overrides(self) -> dict[str, Any]:
        """What the flags set in a recipe."""
        flags = self.flags
        return {
            "recipe.source.strength": flags.strength,
            "recipe.source.steps_exact": flags.steps_exact or None,
            "recipe.source.resize": flags.resize and flags.resize.value,
            "recipe.source.encoding": flags.encoding and flags.encoding.value,
            "recipe.source.background": None if flags.background is None else parse_colour(flags.background),
            "recipe.source.image_guidance": flags.image_guidance,
            "recipe.source.mask.invert": flags.mask_invert or None,
            "recipe.source.mask.grow": flags.mask_grow,
            "recipe.source.mask.blur": flags.mask_blur,
            "recipe.source.mask.only": flags.only_masked or None,
            "recipe.source.mask.padding": flags.mask_padding,
        }

    def starts(self, preset: Preset, console: Console) -> list[Start]:
        """Read every picture once, so that none that cannot be used is found after hours of drawing.

        Raises:
            SdxlError: the mask cannot be used, or no picture.
            UsageError: a mask, margins or an aspect that cannot be honoured.
        """
        how, margins = self._how(preset), _parse_margins(self.flags.pad)
        mask = None if self.flags.mask is None else read_mask(self.flags.mask)
        if mask is None and (self.flags.only_masked or self.flags.mask_invert) and not any(margins):
            name = "--only-masked" if self.flags.only_masked else "--mask-invert"
            raise UsageError(f"{name} needs a mask", hint="give --mask FILE")
        if mask is not None and not any(margins):
            check_mask(mask, how.mask)
        aspect = None if self.flags.aspect in (None, INPUT) else parse_aspect(self.flags.aspect)
        notes = list(() if mask is None else mask.notes)

        def start(path: Path) -> Start:
            if path.suffix == LATENT:
                return self._from_latent(path, preset)
            picture = read_picture(path, how.background)
            source = build_source(preset.model, how, picture.file, None if mask is None else mask.file, margins)
            _, level = spread(source, picture, mask)
            notes.extend(picture.notes)
            if mask is not None and mask.file.size != picture.file.size:
                notes.append(f"{mask.file.name} is scaled to the {_size(picture)} of {path.name}")
            return Start(source, path, self.flags.mask, aspect or self._own_aspect(source, level, preset))

        starts = self.each(start)
        for note in dict.fromkeys(notes):
            console.note(note)
        return starts

    def _how(self, preset: Preset) -> SourceConfig:
        how = preset.recipe.source
        return how if how.strength is not None else how.model_copy(update={"strength": self.strength})

    def _from_latent(self, path: Path, preset: Preset) -> Start:
        """A saved latent goes on as it is, so nothing can be said of its size or of a part of it.

        Raises:
            CheckpointError: it is none, or one of another model.
            UsageError: a flag that only a picture can follow.
        """
        flags = self.flags
        given = {"--mask": flags.mask, "--pad": flags.pad, "--size": flags.size, "--aspect": flags.aspect}
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise UsageError(f"{named[0]} has no meaning for a latent: {path}", hint="start from its picture instead")
        latent, model = read_latent(path), preset.model
        check_latent(latent, model.first_stage, model.name)
        file = latent_source(latent, model.first_stage.factor)
        source = build_source(model, self._how(preset), file).model_copy(update={"latent": True})
        return Start(source, path, None, source.canvas_size[1] / source.canvas_size[0])

    def _own_aspect(self, source: Source, level: Pixels | None, preset: Preset) -> float | None:
        if self.flags.aspect == INPUT:
            return source.canvas_size[1] / source.canvas_size[0]
        if level is not None and source.how.mask.only and preset.recipe.size is None:
            (top, left, bottom, right), around = bounds(level), 2 * source.how.mask.padding
            return (right - left + around) / (bottom - top + around)
        return None


def gather_pictures(flags: Img2ImgFlags) -> Pictures:
    """Tell pictures from the prompt: the last argument, unless that is a picture too or a prompt is given apart.

    Raises:
        UsageError: no picture, a pattern that none matches, or a prompt in two places.
    """
    arguments, prompts = list(flags.arguments or ()), tuple(flags.prompts or ())
    if not prompts and flags.prompts_file is None and arguments and not _names_pictures(arguments[-1]):
        prompts = (arguments.pop(),)
    if not arguments:
        raise UsageError("no picture was given", hint='give it before the prompt: sdxl img2img photo.png "a cat"')
    return Pictures(tuple(path for argument in arguments for path in matching(argument)), prompts, flags)


def gather_files(flags: RefineFlags) -> Pictures:
    """Pictures and latents to refine: all arguments are.

    Raises:
        UsageError: none was given, or a pattern that none matches.
    """
    if not flags.arguments:
        raise UsageError("no picture and no latent was given", hint="sdxl refine outputs/00001-7-a-cat.png")
    paths = tuple(path for argument in flags.arguments for path in matching(argument))
    return Pictures(paths, tuple(flags.prompts or ()), flags, REFINE_STRENGTH)


def recorded_prompts(pictures: Pictures) -> dict[Path, str]:
    """The prompts that pictures were drawn from, as their records say.

    Raises:
        SdxlError: none is there and has one.
    """

    def prompt_of(path: Path) -> str:
        prompt = _recorded(path, "prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            if path.suffix != LATENT:
                read_picture(path)  # no picture, or a damaged one, is said first: a prompt would not help
            raise UsageError(
                f"no prompt was given, and {path} has none in a record of its own",
                hint='say what it shows, such as --prompt "a cat"',
            )
        return prompt

    prompts = pictures.each(prompt_of)
    return dict(zip(pictures.paths, prompts, strict=True))


def refiner_of(pictures: Pictures) -> str:
    """The preset of the refiner for pictures and latents: that of the model which drew them.

    SDXL's where no record says a model that has one, as of a photograph.

    Raises:
        SdxlError: none is there.
        UsageError: they were drawn by models with different refiners.
    """
    known = {entry.name for entry in list_presets()}
    drew = set(pictures.each(lambda path: _recorded(path, "model")))
    names = sorted(str(name) for name in drew if name in known)
    presets = [load_preset(name) for name in names]
    refiners = {p.name if p.model.kind == "refiner" else p.recipe.refiner.preset or DEFAULT_REFINER for p in presets}
    if len(refiners) > 1:
        raise UsageError(
            f"the files were drawn by {', '.join(names)}, which have different refiners",
            hint="refine them apart, or name one refiner with --preset",
        )
    return refiners.pop() if refiners else DEFAULT_REFINER


def _recorded(path: Path, key: str) -> object:
    """What the plan in a file's record says under a key; None without one.

    Raises:
        SdxlError: the file is missing or damaged, or no picture and no latent.
    """
    if path.suffix == LATENT:
        record = read_latent(path).record
        return None if record is None else getattr(record.plan, key)
    try:
        found = read_record(path)
    except PictureError:
        found = None  # perhaps of a format whose records are not read
    if found is None or found.problems:
        read_picture(path)  # whether it can be used is said at once, and not that its refiner or prompt is missing
    plan = None if found is None else (found.record or {}).get("plan")
    return plan.get(key) if isinstance(plan, dict) else None


def describe_start(plan: Plan) -> list[tuple[str, str]]:
    """What `--dry-run` says of where a plan starts, name and text."""
    source = plan.source
    if source is None:
        return []
    (height, width), how = source.picture.size, source.how
    taken = "a latent" if source.latent else f"resize {how.resize}, encoding {how.encoding}"
    facts = [("starts from", f"{source.picture.name}, {width}x{height}, {taken}")]
    facts.append(("strength", describe_strength(plan)))
    if source.mask is not None:
        turned = ", inverted" if how.mask.invert else ""
        alone = f", that part alone with {how.mask.padding} pixels around it" if how.mask.only else ""
        facts.append(("mask", f"{source.mask.name}{turned}, grown {how.mask.grow}, blurred {how.mask.blur}{alone}"))
    if any(source.margins):
        facts.append(("painted around", "left {}, top {}, right {}, bottom {}".format(*source.margins)))
    if source.condition == "edit":
        facts.append(("image guidance", f"{how.image_guidance:g}"))
    return facts


def describe_strength(plan: Plan) -> str:
    """`0.3 of 30 steps: 9 steps, sigma 0.8299 to 0`: of the whole schedule the part that is walked."""
    assert plan.source is not None
    strength, sigmas = plan.source.strength, plan.schedule()
    walked = len(sigmas) - 1
    total = plan.source.schedule_steps(plan.steps, exact=plan.conventions.strength == "exact")
    steps = f"{walked} step{'' if walked == 1 else 's'}"
    return f"{strength:g} of {total} steps: {steps}, sigma {sigmas[0]:.4g} to {sigmas[-1]:.3g}"


def warn_of_size(plan: Plan, model: ModelConfig, console: Console) -> None:
    """Say where a picture's own size is far beyond what the model was trained on."""
    (height, width), native = plan.size, math.prod(model.native_size)
    times = height * width / native
    if times > 2:
        console.warn(
            f"{width}x{height} is {times:.1f} times the area that {model.name} was trained on: such pictures repeat "
            f"themselves; --aspect {INPUT} takes the nearest size that it knows"
        )


def _unchanged(path: Path, read: SourcePicture, sha256: str) -> SourcePicture:
    if read.file.sha256 != sha256:
        raise PictureError(f"{path}: it was changed while this was running")
    return read


def _names_pictures(argument: str) -> bool:
    """Whether an argument is a file, a pattern of files, or the name of a picture that is missing."""
    return bool(Path(argument).is_file() or _found(argument) or _PICTURE_NAME.fullmatch(argument))


def matching(argument: str) -> list[Path]:
    """The files that an argument means: one by its name, or all that a pattern matches.

    Raises:
        UsageError: a pattern that nothing matches, or no name at all.
    """
    if not argument:
        raise UsageError("the name of a file is empty", hint="perhaps a variable of the shell is not set")
    if Path(argument).exists() or not glob.has_magic(argument):
        return [Path(argument)]
    found = _found(argument)
    if not found:
        raise UsageError(f"no file matches {argument!r}")
    return found


def _found(pattern: str) -> list[Path]:
    """The files that a pattern matches, by name; shells leave one that is quoted."""
    if not glob.has_magic(pattern):
        return []
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]


def _parse_margins(text: str | None) -> tuple[int, int, int, int]:
    if text is None:
        return (0, 0, 0, 0)
    match = _MARGINS.fullmatch(text.replace(" ", ""))
    left, top, right, bottom = (0, 0, 0, 0) if match is None else map(int, match.groups())
    if not any((left, top, right, bottom)):
        wrong = "is not four numbers of at most four digits" if match is None else "adds nothing"
        raise UsageError(f"--pad {text!r} {wrong}", hint="write LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,256,0")
    return left, top, right, bottom


def _size(picture: SourcePicture) -> str:
    height, width = picture.file.size
    return f"{width}x{height}"
