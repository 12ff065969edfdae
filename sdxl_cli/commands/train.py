"""`sdxl train`: the training half, one stage a call."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from sdxl_cli.boundary import Stopped
from sdxl_cli.console import Console
from sdxl_cli.options import flag

EPILOG = """
[bold]Examples[/bold]
  sdxl train micro-autoencoder --data pictures --out runs/autoencoder
  sdxl train micro --data pictures --out runs/micro --init runs/autoencoder/model.safetensors

The data is a folder with metadata.jsonl, one line a picture: {"file_name": "cat.png", "text": "a cat"}.
The same call again continues where a stopped or killed run was last saved."""


def _complete(_: typer.Context, __: list[str], incomplete: str) -> list[tuple[str, str] | str]:
    from sdxl_core.training.presets import list_train_presets

    return [name for name in list_train_presets() if name.startswith(incomplete)]


def train(
    preset: Annotated[
        str,
        typer.Argument(metavar="PRESET", help="A training preset's name, or a TOML file.", autocompletion=_complete),
    ],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of pictures with metadata.jsonl.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the state, the log and the model.")],
    init: Annotated[
        list[Path] | None,
        typer.Option("--init", metavar="FILE", help="Model file with weights to start from; may be given again."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Train for N steps in all.")] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--save-dtype", metavar="NAME", help="Of the model file: float32, bfloat16 or float16.")
    ] = "float16",
    quiet: Annotated[bool, flag("-q", "--quiet", help="No progress, errors only.")] = False,
) -> None:
    """Train one part of a model on a folder of pictures, and print the path of the model file.

    The log (log.jsonl, one object every few steps) and the state lie in --out. Ctrl-C saves and stops.
    """
    from sdxl_core.errors import UsageError
    from sdxl_core.training.presets import load_train_preset

    console = Console(quiet=quiet)
    if steps is not None and steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}", hint="leave it out for the preset's own")
    config = load_train_preset(preset, steps)

    # torch is loaded from here on.
    from sdxl_cli.reporters import open_view
    from sdxl_core.devices import DTYPES, resolve_device
    from sdxl_core.training.loop import Trainer
    from sdxl_core.training.run import MODEL_FILE, export, prepare

    if dtype not in DTYPES:
        raise UsageError(f"--save-dtype {dtype!r} is not known", hint="one of " + ", ".join(DTYPES))
    files = init or []
    with open_view(console) as view:
        trainer: Trainer = prepare(config, data, out, init=files, device=resolve_device(device), reporter=view)
        if trainer.step:
            console.note(f"continuing after step {trainer.step} of {config.steps}")
        view.start(f"training {config.name}", config.steps, "steps")
        view.advance(trainer.step)
        running = trainer.run()
        with _stop_between_steps() as wanted:
            for done in running:
                view.advance(1)
                if done.step % config.log_every == 0:
                    values = "  ".join(f"{name} {value:.4g}" for name, value in done.values.items())
                    with view.hidden():
                        console.note(f"step {done.step}  loss {done.loss:.4g}  {values}")
                if wanted:
                    running.close()  # saves the state
                    with view.hidden():
                        console.note(f"saved after step {done.step}; the same call continues")
                    raise Stopped(128 + wanted[0])
        view.finish()
        path = out / MODEL_FILE
        metadata = config.metadata | {"sdxl.train": config.model_dump_json(exclude={"metadata"})}
        export(trainer, path, init=files, dtype=DTYPES[dtype], metadata=metadata)
    console.data(str(path))


@contextmanager
def _stop_between_steps() -> Iterator[list[int]]:
    """Let the first signal wait for the end of the step: its number joins the list. The second one ends at once."""
    wanted: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, _: FrameType | None) -> None:
        wanted.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, remember)
    try:
        yield wanted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
