"""Jobs to picture files: loads the model, samples batch by batch, writes each picture as soon as it is done."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_cli.boundary import SOME_FAILED, Stopped
from sdxl_cli.console import Console, counted, print_error, shorten
from sdxl_cli.flags import DrawFlags
from sdxl_cli.jobs import Job, Run, describe_failure
from sdxl_cli.keeping import Latents, beside
from sdxl_cli.machine import resolve_machine
from sdxl_cli.recording import Hashes, device_name
from sdxl_cli.refiners import resolve_residence
from sdxl_cli.reporters import View, open_view
from sdxl_cli.starting import importing
from sdxl_cli.writing import Background
from sdxl_core.batching import batches, total_calls
from sdxl_core.canvas import Canvas
from sdxl_core.errors import MemoryExhaustedError, NumericsError, OutputError, SdxlError
from sdxl_core.latent_files import SavedLatent, encode_latent
from sdxl_core.output import NameTakenError, prepare_directory, write_whole
from sdxl_core.picture_files import PictureError
from sdxl_core.plan import Plan
from sdxl_core.presets import parts_file
from sdxl_core.records import Record, Role, encode_picture

if TYPE_CHECKING:
    from torch import Tensor

    from sdxl_core.diffusion.noise import PictureNoise
    from sdxl_core.engine import Engine
    from sdxl_core.first_stage import Picture
    from sdxl_core.models.autoencoder import AutoencoderKL
    from sdxl_core.two_models import TwoModels
    from sdxl_core.types import Step


@dataclass(slots=True)
class _Tally:
    """How a run went so far."""

    total: int
    done: int = 0
    failures: list[SdxlError] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.done} of {counted(self.total, 'picture is', 'pictures are')} done"

    def exit_code(self) -> int:
        if not self.failures:
            return 0
        return SOME_FAILED if self.done else self.failures[0].exit_code


@dataclass(frozen=True, slots=True)
class _Sampled:
    """The latents of a batch, the model calls they took, the seconds, shared evenly among its pictures, and whose."""

    latents: "Tensor"
    calls: int
    seconds: float
    engine: "Engine"
    canvases: Sequence[Canvas] = ()

    def of(self, row: int) -> "_Sampled":
        """One picture of the batch."""
        return replace(self, latents=self.latents[row : row + 1], canvases=self.canvases[row : row + 1])


@dataclass(frozen=True, slots=True)
class _Written:
    """A picture file, and what it took: model calls, and seconds without those that it waited."""

    job: Job
    path: Path
    data: bytes
    calls: int
    seconds: float


def draw(run: Run, flags: DrawFlags, console: Console) -> int:
    """Draw every job of a run.

    Returns:
        The exit code: 0, 3 when some pictures failed or were left out, or that of the first failure when all did.

    Raises:
        SdxlError: the model cannot be loaded, memory ran out, or the output cannot be written.
        Stopped: a signal came; its message says how many pictures are done.
    """
    assert run.model_path is not None
    tally = _Tally(len(run.jobs), failures=list(run.left_out))
    try:
        prepare_directory(run.names.destination.directory)
        with open_view(console) as view:
            hashes = Hashes(_files(run))
            models = _load(run, run.model_path, flags, view)
            _Artist(models, run, flags, console, view, hashes, tally).draw_all()
    except Stopped as stop:
        stop.message += f": {tally}"
        raise
    except SdxlError as error:
        if tally.done:
            error.message += f"; {tally}"
        raise
    return tally.exit_code()


def _files(run: Run) -> list[tuple[Role, Path]]:
    """The files of weights that a run reads."""
    refiner = run.refiner
    asked: list[tuple[Role, Path | None]] = [("model", run.model_path), ("vae", run.vae_path)]
    if run.model_path is not None:
        asked.insert(1, ("model_parts", parts_file(run.preset.model, run.model_path)))
    if refiner is not None and refiner.path is not None:
        asked += [("refiner", refiner.path), ("refiner_parts", parts_file(refiner.preset.model, refiner.path))]
    return [(role, path) for role, path in asked if path is not None]


def _load(run: Run, model_path: Path, flags: DrawFlags, view: View) -> "TwoModels":
    """The first model in memory, and the second, if there is one, when it is asked for."""
    view.start("starting PyTorch", None)
    with importing(flags.device):
        from sdxl_core.engine import load_engine
        from sdxl_core.passes import apply_passes
        from sdxl_core.two_models import TwoModels

    view.finish()
    plan, refiner = run.jobs[0].plan, run.refiner
    passes = None if plan.passes == "auto" else plan.passes
    place = resolve_machine(flags.device, plan.dtype, passes)
    load_plain = partial(load_engine, device=place.device, dtype=plan.dtype, attention=plan.attention, reporter=view)

    def load(*args: Any, **options: Any) -> "Engine":
        return apply_passes(load_plain(*args, **options), passes)

    def base(first_stage: "AutoencoderKL | None") -> "Engine":
        return load(run.preset.model, model_path, vae_path=run.vae_path, first_stage=first_stage)

    if refiner is None or refiner.path is None:
        models = TwoModels(base)
    else:
        pair = (run.preset.model, model_path), (refiner.preset.model, refiner.path)
        residence, _ = resolve_residence(flags, *pair, place.device, place.dtype)
        second = partial(load, *pair[1])
        models = TwoModels(base, lambda first_stage: second(first_stage=first_stage), residence)
    models.base()
    return models


@dataclass(frozen=True, slots=True)
class _Artist:
    models: "TwoModels"
    run: Run
    flags: DrawFlags
    console: Console
    view: View
    hashes: Hashes
    tally: _Tally
    latents: Latents = field(init=False)
    writer: Background[_Written] = field(init=False)

    def __post_init__(self) -> None:
        latents = Latents(self.run.names, self.flags.save_latents, self.flags.overwrite)
        object.__setattr__(self, "latents", latents)
        object.__setattr__(self, "writer", Background(self._report, self._say))

    def draw_all(self) -> None:
        groups = list(self._groups())
        self.view.begin_run(self.tally.total, total_calls([[job.plan for job in group] for group in groups]))
        with self.writer:
            for group in groups:
                self._draw(group)

    def _groups(self) -> Iterator[tuple[Job, ...]]:
        """The jobs in batches."""
        jobs = iter(self.run.jobs)
        for plans in batches([job.plan for job in self.run.jobs], self.flags.batch_size):
            yield tuple(next(jobs) for _ in plans)

    def _draw(self, group: Sequence[Job]) -> None:
        """One batch; where a picture of it cannot be drawn, each alone, so that one cannot spoil the others."""
        try:
            sampled = self._sample(group)
        except (NumericsError, PictureError) as error:
            if len(group) == 1:
                self._fail(group[0], error)
            for job in group if len(group) > 1 else ():
                self._draw([job])
            return
        self.view.decoding()
        rows = iter(enumerate(group))
        try:
            for row, job in rows:
                try:
                    self._finish(job, sampled.of(row))
                except NumericsError as error:
                    self._fail(job, error)
        except (SdxlError, Stopped):
            for row, job in rows:
                self._leave(job, sampled.of(row))
            raise

    def _sample(self, group: Sequence[Job]) -> "_Sampled":
        from sdxl_core.pipeline import picture_noise, refine

        began, plans = time.monotonic(), [job.plan for job in group]
        self.view.begin_batch(self._title(group), plans[0].model_calls())
        starts = [(job.start, job.plan) for job in group if job.start is not None]
        canvases = [start.canvas(plan) for start, plan in starts if not start.source.latent]
        saved = [start.latent() for start, _ in starts if start.source.latent]
        noise = picture_noise(self.models.base(), plans)
        latents, calls = self._walk(self._begin(plans, canvases, saved, noise))
        engine = self.models.base() if plans[0].refiner is None else self.models.refiner()
        if plans[0].refiner is not None:
            latents, more = self._walk(refine(engine, plans, latents, noise))
            calls += more
        return _Sampled(latents, calls, (time.monotonic() - began) / len(group), engine, canvases)

    def _begin(
        self, plans: Sequence[Plan], canvases: Sequence[Canvas], saved: Sequence[SavedLatent], noise: "PictureNoise"
    ) -> "Iterator[Step]":
        """The walk of the first model, which nothing here may hold on to: its memory may be wanted for the second."""
        from torch import from_numpy, stack

        from sdxl_core.from_pictures import sample_from, sample_from_latents
        from sdxl_core.pipeline import sample

        engine = self.models.base()
        if saved:
            return sample_from_latents(engine, plans, stack([from_numpy(each.values) for each in saved]), noise)
        return sample_from(engine, plans, canvases, noise) if canvases else sample(engine, plans, noise)

    def _walk(self, steps: "Iterator[Step]") -> "tuple[Tensor, int]":
        """The latents that a walk ends with, and the model calls it took."""
        calls = 0
        for step in steps:
            self.view.step(step.calls)
            calls += step.calls
            self.writer.collect()
        return step.x, calls

    def _title(self, group: Sequence[Job]) -> str:
        if self.tally.total == 1:
            return group[0].plan.prompt
        first = self.run.jobs.index(group[0]) + 1
        numbers = str(first) if len(group) == 1 else f"{first}-{first + len(group) - 1}"
        return f"{numbers} {group[0].plan.prompt}"

    def _finish(self, job: Job, sampled: "_Sampled") -> None:
        """Make the picture; what follows is left to the writer, which may not hold on to the model."""
        began, record, saved = time.monotonic(), self._record(job, sampled), False
        try:
            if self.flags.save_latents:
                job = self.latents.save(_latent_file(sampled.latents, sampled.canvases, record), job)
                saved = True
            picture = self._decode(job, sampled, record)
            latent = partial(_latent_file, sampled.latents.cpu(), sampled.canvases, record)
        except Stopped:
            if not saved:
                self._leave(job, sampled)
            raise
        seconds = sampled.seconds + time.monotonic() - began
        self.writer.submit(partial(self._write, job, picture, latent, sampled.canvases, record, sampled.calls, seconds))

    def _decode(self, job: Job, sampled: "_Sampled", record: Callable[[], Record | None]) -> "Picture":
        """The picture; where it cannot be made, the work of the sampler is not lost: the error says where it lies."""
        from sdxl_core.pipeline import decode

        try:
            return decode(sampled.engine, sampled.latents, decoding=job.plan.decoding, reporter=self.view)[0]
        except (NumericsError, MemoryExhaustedError) as error:
            self.latents.tell(partial(_latent_file, sampled.latents, sampled.canvases, record), job, error)
            raise

    def _leave(self, job: Job, sampled: "_Sampled") -> None:
        """Keep the latent of a picture that is drawn and will not be made, since the run ends before it."""
        error = OutputError("the run ended before it was made")
        self.latents.keep(_latent_file(sampled.latents, sampled.canvases, self._record(job, sampled)), job, error)
        self._say(self._of_picture(job, error))

    def _record(self, job: Job, sampled: "_Sampled") -> Callable[[], Record | None]:
        """What a file says of how it was made."""
        if self.flags.no_metadata:
            return lambda: None
        engine = sampled.engine
        return partial(self.hashes.record, engine.stamp(job.plan), sampled.calls, device_name(engine))

    def _write(
        self,
        job: Job,
        picture: "Picture",
        latent: Callable[[], bytes],
        canvases: Sequence[Canvas],
        record: Callable[[], Record | None],
        calls: int,
        seconds: float,
    ) -> _Written:
        """The file of a picture, beside the drawing of the next one; where it cannot be written its latent is kept."""
        made_by, began = record(), time.monotonic()
        try:
            for canvas in canvases:
                picture = canvas.finish(picture)
            data = encode_picture(picture, self.run.names.destination.format, made_by)
            path = self._publish(job, data)
        except OutputError as error:
            self.latents.tell(latent, job, error)
            raise
        return _Written(job, path, data, calls, seconds + time.monotonic() - began)

    def _publish(self, job: Job, data: bytes) -> Path:
        """Write it under the promised name, or the next free one if another program took it meanwhile.

        Names are handed out here alone while this runs, unless latents are saved, which have the name then.
        """
        names, path = self.run.names, job.path
        while True:
            try:
                write_whole(path, data, overwrite=self.flags.overwrite, within=names.destination.directory)
                return path
            except NameTakenError:
                if self.flags.save_latents or not names.destination.template.has_fields:
                    raise
                path = names.next(job.fields)

    def _report(self, written: _Written) -> None:
        self.tally.done += 1
        plan = written.job.plan
        made = counted(written.calls, "model call", "model calls")
        line = f"{self.tally.done}/{self.tally.total} seed {plan.seed}, {made}, {written.seconds:.1f} s"
        with self.view.hidden():
            self.console.note(f"{line}: {shorten(plan.prompt, 60)}")
            if self.flags.as_json:
                self.console.json(_facts(written, self.flags.save_latents))
            else:
                self.console.data(str(written.path))

    def _fail(self, job: Job, error: SdxlError) -> None:
        self.tally.failures.append(error)
        try:
            self.writer.wait()  # so that the pictures before this one are said first
        finally:
            self._say(self._of_picture(job, error))

    def _of_picture(self, job: Job, error: SdxlError) -> SdxlError:
        """The error, with the picture that it befell."""
        error.message = describe_failure(job, self.run.jobs.index(job) + 1, self.tally.total, error)
        return error

    def _say(self, error: SdxlError) -> None:
        with self.view.hidden():
            print_error(error.message, error.hint)


def _latent_file(latents: "Tensor", canvases: Sequence[Canvas], record: Callable[[], Record | None]) -> bytes:
    """The file of one picture's latent."""
    return encode_latent(latents[0].float().cpu().numpy(), record(), canvases[0].frame if canvases else None)


def _facts(written: _Written, latents: bool) -> dict[str, Any]:
    plan, path = written.job.plan, written.path
    return {
        "path": str(path),
        "seed": plan.seed,
        "prompt": plan.prompt,
        "negative": plan.negative,
        "width": plan.picture_size[1],
        "height": plan.picture_size[0],
        "steps": plan.steps,
        "sampler": plan.sampler.name,
        "preset": plan.model,
        "refiner": None if plan.refiner is None else plan.refiner.model,
        "seconds": round(written.seconds, 3),
        "sha256": hashlib.sha256(written.data).hexdigest(),
        "latent": str(beside(path)) if latents else None,
    }
