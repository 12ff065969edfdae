"""What the benchmarks have in common on the command line, and how they tell what they found."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.figures import Load, to_json, to_markdown
from bench.turns import Contender, Result, Subject, measure

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "sdxl_core" / "weights" / "micro.safetensors"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One table.

    Args:
        name: of its marks in the page, with model and device.
        title: above the table.
        subject: what is measured.
        contenders: names of all that it knows, the peer among them.
        compared: whether results are held against float32.
        pictures: that a run draws from the prompt on.
    """

    name: str
    title: str
    subject: Subject
    contenders: Sequence[str] = ("ours", "ours plain", "ours fp8", "diffusers", "diffusers compiled")
    compared: bool = True
    pictures: int = 0


def options(doc: str | None) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="micro", help="of the model (default micro)")
    parser.add_argument("--model", type=Path, help="its file; default for micro: the one in the package")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="of the picture; default: the model's own")
    parser.add_argument("--steps", type=int, help="of a whole picture; default: the preset's")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once, for throughput (default 4)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", action="append", help="of the network; may be repeated; default: see the page")
    parser.add_argument("--path", action="append", help="leave out the other contenders; may be repeated")
    parser.add_argument("--compiled", action="store_true", help="diffusers compiled too, which takes minutes")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--compare", type=int, metavar="N", help="hold N runs against float32; default: all")
    parser.add_argument("--alone", action="store_true", help="one contender in memory at a time")
    parser.add_argument("--seed", type=int, help="of the first input; default: another one each time")
    parser.add_argument("--busy", action="store_true", help="say that the machine did other things meanwhile")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, help="put the table between its marks in this page")
    return parser


def model_of(args: argparse.Namespace) -> Any:
    """The model that the flags name."""
    from bench.models import Model
    from sdxl_core.presets import load_preset

    preset = load_preset(args.preset)
    file = args.model or (SHIPPED if args.preset == "micro" else None)
    if file is None or not file.is_file():
        raise SystemExit(f"--model FILE is needed: the weights of {args.preset}")
    width, height = (int(side) for side in args.size.split("x")) if args.size else reversed(preset.model.native_size)
    return Model(args.preset, file, (height, width), args.steps or preset.recipe.steps)


def device_of(args: argparse.Namespace) -> str:
    """cpu or cuda:N."""
    from sdxl_core.devices import resolve_device

    return str(resolve_device(args.device))


def run(benchmark: Benchmark, args: argparse.Namespace) -> Result:
    """Measure and tell."""
    on_cuda = benchmark.subject.device.startswith("cuda")
    dtypes = args.dtype or _dtypes(on_cuda)
    left_out = ("fp8",) if args.compiled else ("fp8", "compiled")  # fp8 is run where it is named alone
    wanted = args.path or [name for name in benchmark.contenders if not name.endswith(left_out)]
    if unknown := set(wanted) - set(benchmark.contenders):
        raise SystemExit(f"{benchmark.name}: no path {', '.join(unknown)}; there are {', '.join(benchmark.contenders)}")
    result = measure(
        benchmark.subject,
        [Contender(name, dtype) for dtype in dtypes for name in benchmark.contenders if name in wanted],
        runs=args.runs,
        warmup=args.warmup,
        reference=Contender("diffusers", "float32") if benchmark.compared else None,
        compared=args.compare,
        alone=args.alone,
        seed=args.seed,
        say=lambda text: print(f"{benchmark.name}: {text}", file=sys.stderr, flush=True),
    )
    if args.json:
        facts = {"benchmark": benchmark.name, "machine": result.machine, "rates": asdict(result.rates)}
        print(json.dumps({**facts, "seed": result.seed, "rows": to_json(result.rows)}), flush=True)
    else:
        print(_told(benchmark, result, args), flush=True)
    if args.docs:
        sys.path.insert(0, str(ROOT / "benchmarks" / "micro"))  # its scripts are no package
        from report import write_docs

        write_docs(args.docs, _told(benchmark, result, args), benchmark.name)
    return result


def _dtypes(on_cuda: bool) -> list[str]:
    """float32 and what the program takes of itself, where that is another."""
    from sdxl_core.devices import has_native_bfloat16

    if on_cuda:
        return ["float16"]
    return ["float32", "bfloat16"] if has_native_bfloat16() else ["float32"]


def _calls(load: Load) -> str:
    return "1 call" if load.calls == 1 else f"{load.calls} calls"


def _told(benchmark: Benchmark, result: Result, args: argparse.Namespace) -> str:
    work = benchmark.subject.work()
    copied = f"{result.rates.bytes_per_s / 1e9:.3g} GB/s"
    parts = [f"{part} {load.flop / 1e12:.4g} TFLOP in {_calls(load)}" for part, load in work.items() if load.flop]
    rates = [f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in result.rates.flop_per_s.items()]
    busy = "The machine did other things meanwhile: ratios hold, seconds do not. " if args.busy else ""
    lines = [
        f"**{benchmark.title}.** {busy}{args.runs} runs after {args.warmup}, first seed {result.seed}"
        f"{', one path in memory at a time' if args.alone else ', in turn'}. "
        + (f"Work of a run: {', '.join(parts)}. " if parts else "")
        + f"Rates: matrix product {', '.join(rates)}; copy {copied}. {result.machine}.",
        "",
        to_markdown(result.rows, result.failures, pictures=benchmark.pictures),
    ]
    return "\n".join(lines)
