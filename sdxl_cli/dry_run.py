"""What `--dry-run` shows: the jobs as they would be run."""

import json
from collections.abc import Sequence

from sdxl_cli.console import Console, counted, shorten
from sdxl_cli.flags import DrawFlags
from sdxl_cli.jobs import Run
from sdxl_cli.machine import asks_of_machine, resolve_machine
from sdxl_cli.pictures import describe_start
from sdxl_cli.refiners import describe_handover, resolve_residence
from sdxl_cli.schedules import described
from sdxl_cli.tables import print_pairs, print_table, with_options
from sdxl_core.batching import batches, total_calls
from sdxl_core.compat import WORDS, Conventions, empty_negative
from sdxl_core.config import DiscretizationConfig
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.flops import Work
from sdxl_core.output import check_directory
from sdxl_core.plan import Plan
from sdxl_core.work import Part, network_rows, plan_work


def show_run(run: Run, flags: DrawFlags, console: Console) -> None:
    """Print a run: facts and a table, or with --json one object a picture. Touches no file.

    Raises:
        DeviceError: drawing would refuse at once what is asked of this machine.
        OutputError: it would find at once that it cannot write where the pictures go.
    """
    check_directory(run.names.destination.directory)
    _require_machine(run, flags)
    if flags.as_json:
        for job in run.jobs:
            plan = json.loads(job.plan.to_json())
            calls = job.plan.model_calls()
            rows = network_rows(job.plan)
            work = [_work_json(part) for part in _work(run, job.plan)]
            console.json(
                {
                    "path": str(job.path),
                    "plan": plan,
                    "sigmas": job.plan.sigmas(),
                    "refiner_sigmas": job.plan.refiner_sigmas(),
                    "model_calls": calls,
                    "network_rows": rows,
                    "work": work,
                }
            )
        return
    print_pairs(console, _facts(run, flags))
    console.data("")
    _show_work(_work(run, run.jobs[0].plan), console)
    if run.jobs[0].plan.compat is not None:
        _show_conventions(run.jobs[0].plan, run.preset.recipe.discretization, console)
    print_table(
        console,
        [("picture", "right"), ("seed", "right"), ("size", "left"), ("prompt", "left"), ("file", "left")],
        [
            (
                str(number),
                str(job.plan.seed),
                f"{job.plan.picture_size[1]}x{job.plan.picture_size[0]}",
                shorten(job.plan.prompt, 40),
                str(job.path),
            )
            for number, job in enumerate(run.jobs, 1)
        ],
    )


def _require_machine(run: Run, flags: DrawFlags) -> None:
    plan, refiner = run.jobs[0].plan, run.refiner
    passes = None if plan.passes == "auto" else plan.passes
    if not asks_of_machine(flags.device, plan.dtype, plan.attention, passes):
        return
    from sdxl_core.ops.attention import resolve_attention

    place = resolve_machine(flags.device, plan.dtype, passes)
    for model in (run.preset.model, *(() if refiner is None else (refiner.preset.model,))):
        resolve_attention(plan.attention, place.device, place.dtype, model.network.num_head_channels)


def _work(run: Run, plan: Plan) -> tuple[Part, ...]:
    return plan_work(plan, run.preset.model, None if run.refiner is None else run.refiner.preset.model)


def _show_work(parts: Sequence[Part], console: Console) -> None:
    """What a picture takes, network by network; TFLOP are 10^12 operations, two for a multiplication and its sum."""
    columns = ("calls", "rows", "TFLOP")
    rows: list[tuple[str, ...]] = [
        (part.name, part.model, _number(part.calls), _number(part.rows), _tera(part.work)) for part in parts
    ]
    known = [part.work for part in parts if part.work is not None]
    if len(known) == len(parts):
        rows.append(("a picture", "", "", "", _tera(sum(known, Work()))))
    print_table(console, [("work", "left"), ("model", "left"), *((name, "right") for name in columns)], rows)
    console.data("")


def _work_json(part: Part) -> dict[str, str | int | None]:
    flop = None if part.work is None else part.work.total
    return {"part": part.name, "model": part.model, "calls": part.calls, "rows": part.rows, "flop": flop}


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)


def _tera(work: Work | None) -> str:
    return "?" if work is None else f"{work.total / 1e12:.4g}"


def _show_conventions(plan: Plan, asked: DiscretizationConfig, console: Console) -> None:
    """Every convention with its value, and what it would be without --compat."""
    ours = Conventions()
    rows = [
        (name, WORDS[name][value], "the same" if value == getattr(ours, name) else WORDS[name][getattr(ours, name)])
        for name, value in plan.conventions.model_dump().items()
    ]
    without = empty_negative(None, "base")
    rows.append(("empty_negative", plan.empty_negative, "the same" if plan.empty_negative == without else without))
    meant = described(plan.discretization)
    rows.append(("schedule", meant, "the same" if meant == described(asked) else described(asked)))
    print_table(console, [(f"as {plan.compat}", "left"), ("value", "left"), ("default", "left")], rows)
    console.data("")


def _facts(run: Run, flags: DrawFlags) -> list[tuple[str, str]]:
    plan, sigmas = run.jobs[0].plan, run.jobs[0].plan.sigmas()
    groups = list(batches([job.plan for job in run.jobs], flags.batch_size))
    options = "".join(f", {key} {value}" for key, value in plan.sampler.options().items())
    calls = total_calls(groups)
    steps = (
        counted(plan.steps, "step", "steps") if SAMPLERS[plan.sampler.name].calls is not None else "steps of its own"
    )
    made = "as many as each picture needs," if calls is None else calls
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    levels = " ".join(shown if len(shown) <= 8 else [*shown[:4], "...", *shown[-4:]])
    missing = f"{run.preset.model.file.name} (missing: sdxl pull {run.preset.model.name})"
    facts = [
        ("preset", f"{run.preset.name}: {run.preset.description}".rstrip(": ")),
        ("model file", missing if run.model_path is None else str(run.model_path)),
        ("predicts", run.predicts),
        ("vae file", "" if run.vae_path is None else str(run.vae_path)),
        *describe_start(plan),
        ("negative", plan.negative),
        ("sampler", f"{plan.sampler.name}{options}, {steps}"),
        ("schedule", described(plan.discretization)),
        ("sigmas", levels),
        ("guidance", _guidance(plan)),
        *_refiner(run, flags),
        ("runs on", f"{plan.device}, dtype {plan.dtype}, attention {plan.attention}"),
        ("passes", plan.passes if plan.passes == "auto" else ", ".join(plan.passes) or "none"),
        ("model calls", f"{made} in {counted(len(groups), 'batch', 'batches')}{_rows(plan)}"),
    ]
    return [(name, value) for name, value in facts if value]


def _refiner(run: Run, flags: DrawFlags) -> list[tuple[str, str]]:
    """How the second model goes on, from which file, and where each of the two is meanwhile."""
    if run.refiner is None:
        return []
    model = run.refiner.preset.model
    facts = [("refiner", describe_handover(run.jobs[0].plan))]
    if run.refiner.path is None or run.model_path is None:
        return [*facts, ("refiner file", f"{model.file.name} (missing: sdxl pull {model.name})")]
    place = resolve_machine(flags.device, run.jobs[0].plan.dtype)
    pair = (run.preset.model, run.model_path), (model, run.refiner.path)
    _, words = resolve_residence(flags, *pair, place.device, place.dtype)
    return [*facts, ("refiner file", str(run.refiner.path)), ("memory", words)]


def _guidance(plan: Plan) -> str:
    guider = plan.guider.model_dump()
    if guider["name"] == "identity":
        guider.pop("scale")
    elif guider["name"] == "vanilla_cfg":
        guider["name"] = f"{guider.pop('scale'):g}"
    if plan.guider.interval is not None:
        guided = plan.guidance_cost(plan.schedule()).window.steps(plan.schedule())
        guider["interval"] |= {"steps": f"{guided} of {plan.steps}"}
    return with_options(guider).replace("identity", "none")


def _rows(plan: Plan) -> str:
    rows = network_rows(plan)
    return "" if rows is None else f", {counted(rows, 'network row', 'network rows')} a picture"
