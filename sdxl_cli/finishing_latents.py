"""Saved latents to picture files: finds the autoencoder that made each, loads it once, and writes."""

import hashlib
import os
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_cli.boundary import SOME_FAILED, finishing
from sdxl_cli.commands.decode import DecodeFlags
from sdxl_cli.console import Console, print_error
from sdxl_cli.jobs import DEFAULT_PRESET, LATENT_SUFFIX, preset_for
from sdxl_cli.machine import asks_of_machine, resolve_machine
from sdxl_cli.options import check_machine, full_dtype
from sdxl_cli.pictures import matching
from sdxl_cli.places import hash_cache, models_folders, pull_hint
from sdxl_cli.reporters import View, open_view
from sdxl_core.checkpoints.check import first_stage_prefix
from sdxl_core.checkpoints.detect import detect
from sdxl_core.checkpoints.find import find_file
from sdxl_core.checkpoints.hashing import file_hash
from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.markers import adapt_model, read_markers
from sdxl_core.config import Decoding, ModelConfig
from sdxl_core.errors import PresetError, SdxlError, UsageError
from sdxl_core.latent_files import SavedLatent, check_latent, read_latent
from sdxl_core.naming import FORMATS, NameFields, Names, resolve_destination
from sdxl_core.output import NameTakenError, prepare_directory, write_whole
from sdxl_core.presets import load_preset, parts_owner
from sdxl_core.records import Record, Weights, encode_picture

if TYPE_CHECKING:
    from sdxl_core.first_stage import Picture
    from sdxl_core.models.autoencoder import AutoencoderKL


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the autoencoder of a latent comes from.

    Args:
        model: says what it is.
        path: its file, or the whole model's.
        dtype: of the network beside it.
        given: whether the command line named the file.
        passes: names of `sdxl_core.passes` that its run has made; None for all, where no record says it.
    """

    model: ModelConfig
    path: Path
    dtype: str
    given: bool
    passes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Named:
    """What the command line says of the model, for all latents; None where each latent's record says it.

    Args:
        model: of --preset or --model.
        path: the file that the autoencoder is taken from: --vae, --model, or that of --preset.
        given: whether --vae or --model is that file.
    """

    model: ModelConfig | None
    path: Path | None
    given: bool


def finish_latents(flags: DecodeFlags, console: Console) -> int:
    """Make every picture.

    Returns:
        The exit code: 0, 3 when some latents failed, or that of the first failure when all did.

    Raises:
        SdxlError: the only latent failed, or none can be made as the command line asks.
    """
    check_machine(flags.device, flags.dtype, "auto")
    latents = [path for argument in flags.latents for path in matching(argument)]
    names, named = _names(flags, len(latents)), _named(flags)
    failed: list[SdxlError] = []
    with open_view(console) as view:
        if names is not None:
            prepare_directory(names.destination.directory)
        if asks_of_machine(flags.device, flags.dtype):
            resolve_machine(flags.device, full_dtype(flags.dtype))
        finisher = _Finisher(flags, console, view, names, named)
        for latent in latents:
            try:
                finisher.finish(latent)
            except SdxlError as error:
                if len(latents) == 1:
                    raise
                failed.append(error)
                with view.hidden():
                    print_error(error.message, error.hint)
    if not failed:
        return 0
    return SOME_FAILED if len(failed) < len(latents) else failed[0].exit_code


def _names(flags: DecodeFlags, latents: int) -> Names | None:
    """Names by --output; without, each picture lies beside its latent."""
    if flags.output is None:
        return None
    names = Names(resolve_destination(flags.output, flags.format), flags.overwrite)
    if not names.destination.template.has_fields and latents > 1:
        raise UsageError(
            f"{flags.output} is one file, and there are {latents} latents",
            hint="give a directory, or a template such as '{index:03d}.png'",
        )
    return names


def _named(flags: DecodeFlags) -> _Named:
    name, header, folders = flags.preset, None, models_folders()
    if flags.model is not None:
        header = read_header(find_file(flags.model, folders))
        name = name or preset_for(detect(header), read_markers(header).prediction)
    model = None if name is None else load_preset(name).model
    if model is not None and header is not None:
        model, _ = adapt_model(model, read_markers(header))
    given = flags.vae or flags.model
    path = None if given is None else find_file(given, folders)
    if path is None and model is not None:
        path = _file_of(model)
    if path is not None:
        first_stage_prefix(read_header(path))
    return _Named(model, path, given is not None)


def _file_of(model: ModelConfig, recorded: str | None = None) -> Path:
    """The file that holds a model's autoencoder, by the name that a record says if it is its own."""
    owner = parts_owner(model) or model
    name = recorded if recorded and owner is model else owner.file.name
    return find_file(name, models_folders(), hint=pull_hint(owner) if name == owner.file.name else None)


@dataclass(slots=True)
class _Finisher:
    flags: DecodeFlags
    console: Console
    view: View
    names: Names | None
    named: _Named
    folders: set[Path] = field(default_factory=set)
    when: datetime = field(default_factory=datetime.now)
    loaded: "tuple[_Source, AutoencoderKL] | None" = None

    def finish(self, file: Path) -> None:
        began = time.monotonic()
        latent = read_latent(file)
        source = self._source(latent)
        path, format = self._path(latent)
        record = None if self.flags.no_metadata else self._record(latent, source)
        picture = self._decode(latent, source)
        if latent.frame is not None:
            picture = latent.frame.finish(picture)
        data = encode_picture(picture, format, record)
        with finishing():
            write_whole(path, data, overwrite=self.flags.overwrite)
            self._report(latent, path, data, picture.shape[:2], time.monotonic() - began)

    def _source(self, latent: SavedLatent) -> _Source:
        """By the command line, else by the record."""
        plan, named = None if latent.record is None else latent.record.plan, self.named
        model = named.model or self._recorded_model(latent)
        check_latent(latent, model.first_stage, model.name)
        path = named.path or _file_of(model, None if plan is None else plan.vae or plan.file)
        passes = None if plan is None or plan.passes == "auto" else plan.passes
        return _Source(model, path, self._dtype(latent), named.given, passes)

    def _recorded_model(self, latent: SavedLatent) -> ModelConfig:
        if latent.record is None:
            if not self.named.given:
                raise UsageError(
                    f"{latent.path}: has no record of the model that made it", hint="name it: --preset or --model"
                )
            return load_preset(DEFAULT_PRESET).model
        plan = latent.record.plan
        try:
            model = load_preset(plan.model).model
        except PresetError as error:
            error.message = f"{latent.path}: its model is not known here: {error.message}"
            error.hint = "name its preset file: --preset"
            raise
        # A file can say how its latents are scaled, and the record has kept that.
        scaling = plan.model_dump(include={"scale_factor", "latent_mean", "latent_std"})
        return model.model_copy(update={"first_stage": model.first_stage.model_copy(update=scaling)})

    def _dtype(self, latent: SavedLatent) -> str:
        """Of the network beside the autoencoder."""
        asked = full_dtype(self.flags.dtype)
        return latent.record.plan.dtype if asked == "auto" and latent.record is not None else asked

    def _path(self, latent: SavedLatent) -> tuple[Path, str]:
        if self.names is None:
            format = str(self.flags.format or "png")
            stem = latent.path.name.removesuffix(LATENT_SUFFIX).removesuffix(".safetensors")
            path = latent.path.with_name(stem + FORMATS[format][0])
            if os.path.lexists(path) and not self.flags.overwrite:
                raise NameTakenError(path)
            if path.parent not in self.folders:
                prepare_directory(path.parent)
                self.folders.add(path.parent)
            return path, format
        plan = None if latent.record is None else latent.record.plan
        height, width = latent.values.shape[1:]
        fields = NameFields(
            seed=plan.seed if plan else 0,
            prompt=plan.prompt if plan else latent.path.name.removesuffix(LATENT_SUFFIX),
            width=plan.picture_size[1] if plan else width * 8,
            height=plan.picture_size[0] if plan else height * 8,
            steps=plan.steps if plan else 0,
            sampler=plan.sampler.name if plan else "",
            preset=plan.model if plan else "",
            when=self.when,
        )
        self.names.check(fields, 1)
        return self.names.next(fields), self.names.destination.format

    def _record(self, latent: SavedLatent, source: _Source) -> Record | None:
        """That of the latent; what the command line does otherwise stands in it."""
        record = latent.record
        if record is None:
            return None
        plan = record.plan
        if self.flags.decoding is not None:
            plan = plan.model_copy(update={"decoding": self.flags.decoding.value})
        sha256 = file_hash(source.path, cache=hash_cache(), reporter=self.view)
        weights = record.weights
        held_by = {each.role: each.sha256 for each in weights}
        made_with = held_by.get("vae", held_by.get("model_parts", plan.file_sha256))
        if source.given and sha256 != made_with:
            plan = plan.model_copy(update={"vae": source.path.name, "vae_sha256": sha256})
            kept = tuple(each for each in weights if each.role != "vae")
            weights = (*kept, Weights(role="vae", name=source.path.name, sha256=sha256))
        elif made_with is not None and sha256 != made_with:
            self.console.warn(f"{source.path.name} is not the file that {latent.path.name} was made with")
        return record.model_copy(update={"plan": plan, "weights": weights})

    def _decode(self, latent: SavedLatent, source: _Source) -> "Picture":
        import torch

        from sdxl_core.first_stage import decode_latents

        plan = None if latent.record is None else latent.record.plan
        decoding: Decoding = "auto" if plan is None else plan.decoding
        if self.flags.decoding is not None:
            decoding = self.flags.decoding.value
        values = torch.from_numpy(latent.values)[None]
        return decode_latents(self._first_stage(source), values, decoding=decoding, reporter=self.view)[0]

    def _first_stage(self, source: _Source) -> "AutoencoderKL":
        from sdxl_core.devices import dtype_name, resolve_device
        from sdxl_core.engine import load_first_stage
        from sdxl_core.passes import apply_first_stage_passes

        if self.loaded is None or self.loaded[0] != source:
            self.loaded = None  # before the next one takes its memory
            here = source.dtype
            if resolve_device(self.flags.device).type == "cpu" and here == "float16" != full_dtype(self.flags.dtype):
                here = "float32"  # as it would be beside a float16 network, if a CPU ran one
                self.view.note("the latent says float16, which is for GPUs: decoding in float32")
            place = resolve_machine(self.flags.device, here)
            model = load_first_stage(
                source.model, source.path, device=place.device, dtype=dtype_name(place.dtype), reporter=self.view
            )
            apply_first_stage_passes(model, place, source.passes)
            self.loaded = source, model
        return self.loaded[1]

    def _report(self, latent: SavedLatent, path: Path, data: bytes, size: tuple[int, ...], seconds: float) -> None:
        plan = None if latent.record is None else latent.record.plan
        with self.view.hidden():
            self.console.note(f"{latent.path.name}: decoded in {seconds:.1f} s")
            masked = plan is not None and plan.source is not None and plan.source.repaints_a_part
            if masked and latent.frame is None:
                self.console.warn(f"{path.name} is all painted: the latent does not hold what a mask has kept")
            if not self.flags.as_json:
                self.console.data(str(path))
                return
            self.console.json(
                {
                    "path": str(path),
                    "latent": str(latent.path),
                    "seed": plan.seed if plan else None,
                    "prompt": plan.prompt if plan else None,
                    "width": size[1],
                    "height": size[0],
                    "preset": plan.model if plan else None,
                    "seconds": round(seconds, 3),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
