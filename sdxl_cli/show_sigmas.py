"""What `sdxl sigmas` prints and draws."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from shutil import get_terminal_size
from typing import Any, Literal

import numpy as np

from sdxl_cli.commands.sigmas import SigmasFlags
from sdxl_cli.console import Console, has_colour, shorten
from sdxl_cli.noise_rows import BetaRow, NoiseRow, beta_rows, noise_rows
from sdxl_cli.plot import braille_plot, sparkline
from sdxl_cli.tables import print_table
from sdxl_cli.walks import DEFAULT_STEPS, Maker, Walk, given_schedule, named_schedule, shared_walks, split_names
from sdxl_core.compat import WORDS, resolve_program
from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import trained_levels, trained_range
from sdxl_core.diffusion.handover import parse_handover
from sdxl_core.diffusion.samplers import resolve_sampler
from sdxl_core.diffusion.schedules import SCHEDULES, check_schedule, resolve_sigmas
from sdxl_core.errors import UsageError
from sdxl_core.output import write_whole
from sdxl_core.prediction import predicting, prediction_name, resolve_prediction
from sdxl_core.presets import load_preset

_COLUMNS = ("index", "sigma", "timestep", "alpha_bar", "log-SNR", "step", "SNR dB")
_ANSI = (34, 33, 32, 35, 31, 36, 93, 90)  # as near as a terminal has them to the palette of the figures
_SPARK_STEPS = 16
_BETA_ROWS = 21


def show_levels(flags: SigmasFlags, console: Console) -> None:
    """Lists of noise levels: one, several side by side, or one that two models share.

    Raises:
        UsageError: a schedule, option or cut that cannot be.
        OutputError: a file that cannot be written.
    """
    schedule, steps, maker = _asked(flags)
    walks, denoiser = _walks(flags, schedule, steps, maker, console), maker.denoiser
    levels = trained_levels(denoiser).tolist()
    highest = max(walk.sigmas[0] for walk in walks)
    if highest > levels[-1] * 1.001:
        console.warn(f"sigma {highest:.4g} is above {levels[-1]:.4g}, the highest level that the model was trained on")
    _draw(flags, lambda: _figure(walks, denoiser, levels))
    rows = [noise_rows(walk.sigmas, denoiser, levels, walk.snap) for walk in walks]
    if flags.emit:
        console.data(",".join(map(_exact, walks[0].sigmas)))
    elif flags.as_json:
        console.json(_document(flags, walks, rows, maker), indent=2)
    elif flags.as_csv:
        _print_csv(console, flags, walks, rows)
    else:
        _print_tables(console, flags, walks, rows)
        if _plotted(flags):
            firsts = [walk.first for walk in walks]
            _plot(console, [[s for s in walk.sigmas if s > 0] for walk in walks], _names(walks), firsts)


def show_betas(flags: SigmasFlags, console: Console) -> None:
    """The beta schedule of training, its running product and the noise levels that follow; every timestep in files.

    Raises:
        UsageError: a model without betas, or no rows.
        OutputError: a file that cannot be written.
    """
    if flags.steps is not None and flags.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {flags.steps}")
    denoiser = _asked(flags)[2].denoiser
    rows = beta_rows(denoiser)
    _draw(flags, lambda: _beta_figure(rows, denoiser))
    if flags.as_json:
        console.json({"prediction": prediction_name(denoiser), "timesteps": [asdict(row) for row in rows]}, indent=2)
    elif flags.as_csv:
        console.data("timestep,beta,alpha_bar,sigma,log_snr")
        for row in rows:
            console.data(f"{row.timestep},{row.beta!r},{row.alpha_bar!r},{row.sigma!r},{row.log_snr!r}")
    else:
        wanted = min(flags.steps or _BETA_ROWS, len(rows))
        places = sorted({round(i * (len(rows) - 1) / max(wanted - 1, 1)) for i in range(wanted)})
        print_table(
            console,
            [(name, "right") for name in ("timestep", "beta", "alpha_bar", "sigma", "log-SNR")],
            [
                (str(r.timestep), f"{r.beta:.6g}", f"{r.alpha_bar:.6g}", f"{r.sigma:.6g}", f"{r.log_snr:.4f}")
                for r in (rows[place] for place in places)
            ],
        )
        if _plotted(flags):
            _plot(console, [[row.beta for row in rows], [row.alpha_bar for row in rows]], ["beta", "alpha_bar"])


def show_schedules(as_json: bool, console: Console) -> None:
    """Every schedule in one line: its levels as bars, its options, and what it is."""
    if as_json:
        console.json(
            [
                {"name": row.name, "summary": row.summary, "source": row.source, "options": row.options}
                for row in SCHEDULES.values()
            ],
            indent=2,
        )
        return
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    longest = max(map(len, SCHEDULES))
    low, high = trained_range(DenoiserConfig())
    for row in SCHEDULES.values():
        bars = " " * _SPARK_STEPS
        if row.name != "explicit":
            most = 10 if row.name == "turbo" else _SPARK_STEPS
            levels = resolve_sigmas(DiscretizationConfig(name=row.name), most, DenoiserConfig())
            bars = sparkline([level for level in levels if level > 0][:most], low, high).ljust(_SPARK_STEPS)
        options = f" [{', '.join(row.options)}]" if row.options else ""
        text = f"{row.name:<{longest}}  {bars}  {row.summary}{options} ({row.source})"
        console.data(text if width is None else shorten(text, width))


def _asked(flags: SigmasFlags) -> tuple[DiscretizationConfig, int | None, Maker]:
    """Schedule, steps, and what makes levels of them, by the flags or else by the preset."""
    schedule, steps, denoiser = (
        named_schedule("ddpm" if flags.kind is None else flags.kind, "--kind"),
        flags.steps,
        DenoiserConfig(),
    )
    compat = None if flags.compat is None else resolve_program(flags.compat)
    sampler = "euler" if flags.sampler is None else resolve_sampler(flags.sampler).name
    if flags.preset is not None:
        preset = load_preset(flags.preset)
        steps, denoiser = preset.recipe.steps if steps is None else steps, preset.model.denoiser
        schedule = preset.recipe.discretization if flags.kind is None else schedule
        compat = preset.recipe.compat if compat is None else compat
        sampler = preset.recipe.sampler.name if flags.sampler is None else sampler
    if flags.sampler is not None and compat is None:
        raise UsageError("--sampler belongs to --compat", hint="here no sampler has levels of its own")
    for option, value in (("rho", flags.rho), ("sigma_min", flags.sigma_min), ("sigma_max", flags.sigma_max)):
        if value is not None:
            check_schedule(schedule.name, {option: value})
            schedule = DiscretizationConfig(name=schedule.name, **schedule.options() | {option: value})
    if flags.prediction is not None or flags.shift is not None:
        prediction = prediction_name(denoiser) if flags.prediction is None else resolve_prediction(flags.prediction)
        denoiser = predicting(denoiser, prediction, shift=flags.shift)
    return schedule, steps, Maker(denoiser, compat, sampler)


def _walks(
    flags: SigmasFlags, schedule: DiscretizationConfig, steps: int | None, maker: Maker, console: Console
) -> list[Walk]:
    handover = None if flags.refine is None else parse_handover(flags.refine)
    if flags.sigmas is not None:
        schedule, steps = given_schedule(flags.sigmas, steps)
    elif steps is None:
        steps = (handover and handover.steps) or DEFAULT_STEPS
    names = [] if flags.compare is None else split_names(flags.compare)
    if len(names) > len(_ANSI):
        raise UsageError(f"--compare takes at most {len(_ANSI)} schedules, not {len(names)}")
    schedules = [named_schedule(name, "--compare") for name in names] or [schedule]
    if maker.compat is not None:
        conventions = maker.conventions(schedules[0])
        said = [WORDS[name][getattr(conventions, name)] for name in ("drop_penultimate", "snap")]
        console.note(f"as {maker.compat} with {maker.sampler}: {'; '.join(said)}")
    if flags.strength is not None:
        walks = [maker.end(each, steps, flags.strength, console) for each in schedules]
    else:
        walks = [maker.walk(each, steps) for each in schedules]
    return walks if handover is None else shared_walks(walks[0], handover, maker.denoiser, console)


def _document(
    flags: SigmasFlags, walks: Sequence[Walk], rows: Sequence[Sequence[NoiseRow]], maker: Maker
) -> dict[str, Any]:
    lists = [
        {
            "kind": walk.name.partition(":")[0],
            "schedule": walk.name,
            "steps": walk.steps,
            **({"model": walk.model, "first": walk.first} if walk.model else {}),
            "levels": [asdict(row) for row in levels],
        }
        for walk, levels in zip(walks, rows, strict=True)
    ]
    asked = {
        "prediction": prediction_name(maker.denoiser),
        "compat": maker.compat,
        "sampler": maker.compat and maker.sampler,
        "strength": flags.strength,
        "refine": flags.refine,
    }
    said = {key: value for key, value in asked.items() if value is not None}
    return {**lists[0], **said} if len(lists) == 1 else {**said, "lists": lists}


def _print_csv(console: Console, flags: SigmasFlags, walks: Sequence[Walk], rows: Sequence[Sequence[NoiseRow]]) -> None:
    if flags.compare is not None:
        console.data(",".join(["index", *(f'"{walk.name}"' if "," in walk.name else walk.name for walk in walks)]))
        for index, sigmas in _side_by_side(walks):
            console.data(",".join([str(index), *("" if s is None else _exact(s) for s in sigmas)]))
        return
    shared = len(walks) > 1
    console.data(f"{'model,' if shared else ''}index,sigma,timestep,alpha_bar,log_snr,log_snr_step,snr_db")
    for walk, levels in zip(walks, rows, strict=True):
        for row in levels:
            cells = [row.timestep, row.alpha_bar, row.log_snr, row.log_snr_step, row.snr_db]
            texts = [str(row.index + walk.first), _exact(row.sigma), *("" if c is None else repr(c) for c in cells)]
            console.data(",".join([walk.model, *texts] if shared else texts))


def _print_tables(
    console: Console, flags: SigmasFlags, walks: Sequence[Walk], rows: Sequence[Sequence[NoiseRow]]
) -> None:
    if flags.compare is not None:
        print_table(
            console,
            [("index", "right"), *((walk.name, "right") for walk in walks)],
            [
                (str(index), *("-" if sigma is None else _exact(sigma) for sigma in sigmas))
                for index, sigmas in _side_by_side(walks)
            ],
        )
        return
    shared = len(walks) > 1
    columns: list[tuple[str, Literal["left", "right"]]] = [(name, "right") for name in _COLUMNS]
    print_table(
        console,
        [*columns, ("model", "left")] if shared else columns,
        [
            (*_cells(row, walk.first), *([walk.model] if shared else []))
            for walk, levels in zip(walks, rows, strict=True)
            for row in levels
        ],
    )


def _cells(row: NoiseRow, first: int) -> tuple[str, ...]:
    def fixed(number: float | None, digits: int) -> str:
        return "-" if number is None else f"{number:.{digits}f}"

    timestep = str(row.timestep) if isinstance(row.timestep, int) else fixed(row.timestep, 3)
    return (
        str(row.index + first),
        _exact(row.sigma),
        timestep,
        f"{row.alpha_bar:.6f}",
        fixed(row.log_snr, 4),
        fixed(row.log_snr_step, 4),
        fixed(row.snr_db, 2),
    )


def _side_by_side(walks: Sequence[Walk]) -> list[tuple[int, list[float | None]]]:
    count = max(len(walk.sigmas) for walk in walks)
    return [(i, [walk.sigmas[i] if i < len(walk.sigmas) else None for walk in walks]) for i in range(count)]


def _exact(sigma: float) -> str:
    """The shortest text that names this float32."""
    return "0" if sigma == 0 else np.format_float_positional(np.float32(sigma), trim="-")


def _names(walks: Sequence[Walk]) -> list[str]:
    return [walk.model or walk.name for walk in walks]


def _plotted(flags: SigmasFlags) -> bool:
    return sys.stdout.isatty() if flags.plot is None else flags.plot


def _plot(
    console: Console, series: Sequence[Sequence[float]], names: Sequence[str], firsts: Sequence[int] | None = None
) -> None:
    """A plot under a table; several series have their colours, and a line that names them."""
    coloured = has_colour(sys.stdout) and len(series) > 1

    def paint(text: str, number: int) -> str:
        return f"\033[{_ANSI[number % len(_ANSI)]}m{text}\033[0m" if coloured else text

    console.data("")
    for line in braille_plot(series, max(min(get_terminal_size().columns, 100), 30), 16, paint, firsts):
        console.data(line)
    if len(series) > 1:
        console.data("".join(f"{'':<10}{paint('━━', number)} {name}\n" for number, name in enumerate(names)).rstrip())


def _draw(flags: SigmasFlags, figure: Callable[[], Any]) -> None:
    """Write the figure into the files that were asked for."""
    if flags.png is None and flags.svg is None:
        return
    from sdxl_cli.chart import HEIGHT, WIDTH  # Pillow is kept off the path without a file
    from sdxl_cli.marks import to_png, to_svg

    marks = figure()
    for path, render in ((flags.png, to_png), (flags.svg, to_svg)):
        if path is not None:
            write_whole(path, render(marks, WIDTH, HEIGHT), overwrite=flags.overwrite)


def _figure(walks: Sequence[Walk], denoiser: DenoiserConfig, levels: Sequence[float]) -> Any:
    from sdxl_cli.chart import Curve, schedule_figure
    from sdxl_cli.trained import training_densities

    curves = [Curve(name, walk.sigmas, walk.first) for name, walk in zip(_names(walks), walks, strict=True)]
    steps = walks[0].steps
    title = (
        f"{walks[0].name}, {steps} steps" if len({walk.name for walk in walks}) == 1 else f"Schedules of {steps} steps"
    )
    return schedule_figure(curves, training_densities(denoiser, levels), title)


def _beta_figure(rows: Sequence[BetaRow], denoiser: DenoiserConfig) -> Any:
    from sdxl_cli.chart import beta_figure

    return beta_figure(rows, f"Betas of {len(rows)} timesteps, prediction {prediction_name(denoiser)}")
