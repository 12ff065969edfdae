"""Jobs to picture files: loads the model, samples batch by batch, writes each picture as soon as it is done."""

import hashlib
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sdxl_core
from sdxl_cli.boundary import Stopped, finishing
from sdxl_cli.console import Console, counted, print_error, shorten
from sdxl_cli.flags import DrawFlags
from sdxl_cli.jobs import LATENT_SUFFIX, Job, Run, describe_failure
from sdxl_cli.places import hash_cache
from sdxl_cli.reporters import View, open_view
from sdxl_core.batching import batches, total_calls
from sdxl_core.canvas import Canvas
from sdxl_core.checkpoints.hashing import file_hash
from sdxl_core.errors import CheckpointError, MemoryExhaustedError, NumericsError, SdxlError
from sdxl_core.naming import Names
from sdxl_core.output import NameTakenError, prepare_directory, write_whole
from sdxl_core.picture_files import PictureError
from sdxl_core.plan import Plan
from sdxl_core.records import Record, Weights, encode_latent, encode_picture

if TYPE_CHECKING:
    from torch import Tensor

    from sdxl_core.engine import Engine
    from sdxl_core.first_stage import Picture

SOME_FAILED = 3


class Hashes:
    """The sha256 of the weights' files, computed beside the sampling; a file that cannot be hashed has none."""

    def __init__(self, files: Sequence[tuple[Literal["model", "vae"], Path]]) -> None:
        self._files = files
        self._found: dict[Path, str] = {}
        # A daemon, so that an interrupted run need not wait for gigabytes to be read.
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        for _, path in self._files:
            try:
                self._found[path] = file_hash(path, cache=hash_cache())
            except CheckpointError:
                continue

    def weights(self) -> tuple[Weights, ...]:
        """Waits until all are known."""
        self._thread.join()
        return tuple(Weights(role=role, name=path.name, sha256=self._found.get(path)) for role, path in self._files)


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
    """The latents of a batch, the model calls they took, and the seconds, shared evenly among its pictures."""

    latents: "Tensor"
    calls: int
    seconds: float
    canvases: Sequence[Canvas] = ()

    def of(self, row: int) -> "_Sampled":
        """One picture of the batch."""
        return replace(self, latents=self.latents[row : row + 1], canvases=self.canvases[row : row + 1])


def draw(run: Run, flags: DrawFlags, console: Console) -> int:
    """Draw every job of a run.

    Returns:
        The exit code: 0, 3 when some pictures failed, or that of the failure when all did.

    Raises:
        SdxlError: the model cannot be loaded, memory ran out, or the output cannot be written.
        Stopped: a signal came; its message says how many pictures are done.
    """
    assert run.model_path is not None
    tally = _Tally(len(run.jobs))
    try:
        prepare_directory(run.names.destination.directory)
        with open_view(console) as view:
            engine = _load(run, run.model_path, flags, view)
            files: list[tuple[Literal["model", "vae"], Path]] = [("model", run.model_path)]
            if run.vae_path is not None:
                files.append(("vae", run.vae_path))
            _Artist(engine, run, flags, console, view, Hashes(files), tally).draw_all()
    except Stopped as stop:
        stop.message += f": {tally}"
        raise
    except SdxlError as error:
        if tally.done:
            error.message += f"; {tally}"
        raise
    return tally.exit_code()


def _load(run: Run, model_path: Path, flags: DrawFlags, view: View) -> "Engine":
    view.start("starting PyTorch", None)
    from sdxl_core.engine import load_engine

    view.finish()
    plan = run.jobs[0].plan
    return load_engine(
        run.preset.model,
        model_path,
        vae_path=run.vae_path,
        device=flags.device,
        dtype=plan.dtype,
        attention=plan.attention,
        reporter=view,
    )


@dataclass(frozen=True, slots=True)
class _Artist:
    engine: "Engine"
    run: Run
    flags: DrawFlags
    console: Console
    view: View
    hashes: Hashes
    tally: _Tally

    def draw_all(self) -> None:
        groups = list(self._groups())
        self.view.begin_run(self.tally.total, total_calls([[job.plan for job in group] for group in groups]))
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
        for row, job in enumerate(group):
            try:
                self._finish(job, sampled.of(row))
            except NumericsError as error:
                self._fail(job, error)

    def _sample(self, group: Sequence[Job]) -> "_Sampled":
        from sdxl_core.from_pictures import sample_from
        from sdxl_core.pipeline import sample

        began, plans = time.monotonic(), [job.plan for job in group]
        self.view.begin_batch(self._title(group), plans[0].model_calls())
        canvases = [job.start.canvas(job.plan) for job in group if job.start is not None]
        calls = 0
        for step in sample_from(self.engine, plans, canvases) if canvases else sample(self.engine, plans):
            self.view.step(step.calls)
            calls += step.calls
        return _Sampled(step.x, calls, (time.monotonic() - began) / len(group), canvases)

    def _title(self, group: Sequence[Job]) -> str:
        if self.tally.total == 1:
            return group[0].plan.prompt
        first = self.run.jobs.index(group[0]) + 1
        numbers = str(first) if len(group) == 1 else f"{first}-{first + len(group) - 1}"
        return f"{numbers} {group[0].plan.prompt}"

    def _finish(self, job: Job, sampled: "_Sampled") -> None:
        began = time.monotonic()
        record = None if self.flags.no_metadata else self._record(job.plan, sampled.calls)
        if self.flags.save_latents:
            job = self._keep_latent(job, sampled, record)
        picture = self._decode(job, sampled, record)
        for canvas in sampled.canvases:
            picture = canvas.finish(picture)
        data = encode_picture(picture, self.run.names.destination.format, record)
        with finishing():
            path = self._write(job, data)
            self.tally.done += 1
            self._report(job, path, data, sampled.calls, sampled.seconds + time.monotonic() - began)

    def _decode(self, job: Job, sampled: "_Sampled", record: Record | None) -> "Picture":
        """The picture; where it cannot be made, the work of the sampler is not lost: the error says where it lies."""
        from sdxl_core.pipeline import decode

        try:
            return decode(self.engine, sampled.latents, decoding=job.plan.decoding, reporter=self.view)[0]
        except (NumericsError, MemoryExhaustedError) as error:
            if not self.flags.save_latents:
                job = self._keep_latent(job, sampled, record)
            kept = job.path.with_suffix(LATENT_SUFFIX)
            error.message += f"; its latent is kept in {kept}"
            error.hint = f"{error.hint}; 'sdxl decode {kept}' makes the picture of it"
            raise

    def _keep_latent(self, job: Job, sampled: "_Sampled", record: Record | None) -> Job:
        """Write the latent beside where the picture goes; the job under the name that was free for both."""
        job = self._rename_if_taken(job)
        data = encode_latent(sampled.latents[0].float().cpu().numpy(), record)
        write_whole(job.path.with_suffix(LATENT_SUFFIX), data, overwrite=self.flags.overwrite)
        return job

    def _write(self, job: Job, data: bytes) -> Path:
        """Under the promised name, or the next free one if another program took it meanwhile."""
        directory = self.run.names.destination.directory
        while True:
            try:
                write_whole(job.path, data, overwrite=self.flags.overwrite, within=directory)
                return job.path
            except NameTakenError:
                if self.flags.save_latents or not _counts(self.run.names):
                    raise
                job = replace(job, path=self.run.names.next(job.fields))

    def _rename_if_taken(self, job: Job) -> Job:
        taken = any(path.exists() for path in (job.path, job.path.with_suffix(LATENT_SUFFIX)))
        if not taken or self.flags.overwrite or not _counts(self.run.names):
            return job
        return replace(job, path=self.run.names.next(job.fields))

    def _record(self, plan: Plan, calls: int) -> Record:
        weights = self.hashes.weights()
        stamped = self.engine.stamp(plan)
        hashes = {w.role: w.sha256 for w in weights}
        stamped = stamped.model_copy(update={"file_sha256": hashes["model"], "vae_sha256": hashes.get("vae")})
        return Record(
            software=f"sdxl {sdxl_core.__version__}",
            plan=stamped,
            sigmas=plan.sigmas(),
            model_calls=calls,
            weights=weights,
            versions=_versions(),
            device_name=_device_name(self.engine),
        )

    def _report(self, job: Job, path: Path, data: bytes, calls: int, seconds: float) -> None:
        plan = job.plan
        made = counted(calls, "model call", "model calls")
        line = f"{self.tally.done}/{self.tally.total} seed {plan.seed}, {made}, {seconds:.1f} s"
        with self.view.hidden():
            self.console.note(f"{line}: {shorten(plan.prompt, 60)}")
            if self.flags.as_json:
                self.console.json(_facts(job, path, data, seconds, self.flags.save_latents))
            else:
                self.console.data(str(path))

    def _fail(self, job: Job, error: SdxlError) -> None:
        self.tally.failures.append(error)
        number = self.run.jobs.index(job) + 1
        with self.view.hidden():
            print_error(describe_failure(job, number, self.tally.total, error), error.hint)


def _counts(names: Names) -> bool:
    return names.destination.template.has_fields


def _facts(job: Job, path: Path, data: bytes, seconds: float, latents: bool) -> dict[str, Any]:
    plan = job.plan
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
        "seconds": round(seconds, 3),
        "sha256": hashlib.sha256(data).hexdigest(),
        "latent": str(path.with_suffix(LATENT_SUFFIX)) if latents else None,
    }


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if torch.version.cuda is not None and torch.cuda.is_available():
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    return versions


def _device_name(engine: "Engine") -> str:
    import torch

    if engine.device.type == "cuda":
        return torch.cuda.get_device_name(engine.device)
    return platform.machine()
