"""Saved latents to picture files: finds the autoencoder that made each, loads it once, and writes."""

import hashlib
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_cli.boundary import SOME_FAILED, finishing
from sdxl_cli.commands.decode import DecodeFlags
from sdxl_cli.console import Console, print_error
from sdxl_cli.jobs import DEFAULT_PRESET, LATENT_SUFFIX, preset_for
from sdxl_cli.options import check_machine, full_dtype
from sdxl_cli.places import hash_cache, models_folders
from sdxl_cli.reporters import View, open_view
from sdxl_core.checkpoints.detect import detect
from sdxl_core.checkpoints.find import find_file
from sdxl_core.checkpoints.hashing import file_hash
from sdxl_core.checkpoints.header import read_header
from sdxl_core.checkpoints.markers import adapt_model, read_markers
from sdxl_core.config import Decoding, ModelConfig
from sdxl_core.errors import PresetError, SdxlError, UsageError
from sdxl_core.latent_files import SavedLatent, check_latent, read_latent
from sdxl_core.naming import FORMATS, NameFields, Names, resolve_destination
from sdxl_core.output import write_whole
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


def finish_latents(flags: DecodeFlags, console: Console) -> int:
    """Make every picture.

    Returns:
        The exit code: 0, or 3 when some latents failed.

    Raises:
        SdxlError: the only latent failed, or all did with this error as the last.
    """
    check_machine(flags.device, flags.dtype, "auto")
    failed: list[SdxlError] = []
    with open_view(console) as view:
        finisher = _Finisher(flags, console, view, _names(flags))
        for file in flags.latents:
            try:
                finisher.finish(Path(file))
            except SdxlError as error:
                if len(flags.latents) == 1:
                    raise
                failed.append(error)
                with view.hidden():
                    print_error(error.message, error.hint)
    if not failed:
        return 0
    return SOME_FAILED if len(failed) < len(flags.latents) else failed[0].exit_code


def _names(flags: DecodeFlags) -> Names | None:
    """Names by --output; without, each picture lies beside its latent."""
    if flags.output is None:
        return None
    names = Names(resolve_destination(flags.output, flags.format), flags.overwrite)
    if not names.destination.template.has_fields and len(flags.latents) > 1:
        raise UsageError(
            f"{flags.output} is one file, and there are {len(flags.latents)} latents",
            hint="give a directory, or a template such as '{index:03d}.png'",
        )
    return names


@dataclass(slots=True)
class _Finisher:
    flags: DecodeFlags
    console: Console
    view: View
    names: Names | None
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
        flags, plan = self.flags, None if latent.record is None else latent.record.plan
        if plan is None and not (flags.preset or flags.model or flags.vae):
            raise UsageError(
                f"{latent.path}: has no record of the model that made it", hint="name it: --preset or --model"
            )
        folders = models_folders()
        given = flags.vae or flags.model
        path = None if given is None else find_file(given, folders)
        name = flags.preset or (None if plan is None else plan.model) or DEFAULT_PRESET
        header = None if flags.model is None else read_header(find_file(flags.model, folders))
        if header is not None and flags.preset is None:
            name = preset_for(detect(header), read_markers(header).prediction)
        try:
            model = load_preset(name).model
        except PresetError as error:
            if flags.preset is None and plan is not None:
                error.message = f"{latent.path}: its model is not known here: {error.message}"
                error.hint = "name its preset file: --preset"
            raise
        if header is not None:
            model, _ = adapt_model(model, read_markers(header))
        elif plan is not None and flags.preset is None:
            # A file can say how its latents are scaled, and the record has kept that.
            scaling = plan.model_dump(include={"scale_factor", "latent_mean", "latent_std"})
            model = model.model_copy(update={"first_stage": model.first_stage.model_copy(update=scaling)})
        check_latent(latent, model.first_stage, model.name)
        if path is None:
            owner = parts_owner(model) or model
            recorded = None if plan is None or flags.preset is not None else plan.vae or plan.file
            path = find_file(recorded if recorded and owner is model else owner.file.name, folders)
        passes = None if plan is None or plan.passes == "auto" else plan.passes
        return _Source(model, path, self._dtype(latent), given is not None, passes)

    def _dtype(self, latent: SavedLatent) -> str:
        """Of the network beside the autoencoder."""
        asked = full_dtype(self.flags.dtype)
        return latent.record.plan.dtype if asked == "auto" and latent.record is not None else asked

    def _path(self, latent: SavedLatent) -> tuple[Path, str]:
        if self.names is None:
            format = str(self.flags.format or "png")
            stem = latent.path.name.removesuffix(LATENT_SUFFIX).removesuffix(".safetensors")
            return latent.path.with_name(stem + FORMATS[format][0]), format
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
        from sdxl_core.devices import dtype_name, resolve_device, resolve_dtype
        from sdxl_core.engine import load_first_stage
        from sdxl_core.passes import Beside, apply_first_stage_passes

        if self.loaded is None or self.loaded[0] != source:
            self.loaded = None  # before the next one takes its memory
            device = resolve_device(self.flags.device)
            here = source.dtype
            if device.type == "cpu" and here == "float16" != full_dtype(self.flags.dtype):
                here = "float32"  # as it would be beside a float16 network, if a CPU ran one
                self.view.note("the latent says float16, which is for GPUs: decoding in float32")
            place = Beside(device, resolve_dtype(here, device))
            model = load_first_stage(
                source.model, source.path, device=device, dtype=dtype_name(place.dtype), reporter=self.view
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
