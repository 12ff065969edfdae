"""What a process does for its first pictures, part by part: loading, passes, words, every step, decoding.

    PYTHONPATH=. python benchmarks/first_pictures.py [--preset sdxl-base-1.0 --model FILE --leave-out cuda_graph]

On CUDA a step is handed on when it is done; the first one of a shape sets libraries up, the second is recorded. Every
picture has other words and noise. "host" is what the host needs to ask for one network call, the device not waited for.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from bench.command import device_of, model_of, options
from bench.models import Model

from sdxl_core.engine import Engine, load_engine
from sdxl_core.passes import PASSES, apply_passes
from sdxl_core.pipeline import condition, decode, sample
from sdxl_core.types import Conditioning


class Watch:
    """Seconds since it was last asked, in milliseconds, all work on the device included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = time.perf_counter()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.last = self.last, time.perf_counter()
        return 1000 * (self.last - before)


def told(name: str, times: Sequence[float]) -> None:
    print(f"{name:>12}  {'  '.join(f'{each:.1f}' for each in times)}", flush=True)


def draw(engine: Engine, model: Model, seed: int) -> None:
    watch, plan = Watch(engine.device), model.plan(seed)
    with torch.inference_mode():
        condition(engine, [plan], uncond=True)
    told("words ms", [watch.lap()])
    steps = []
    for step in sample(engine, [plan]):  # noqa: B007
        now = time.perf_counter()
        steps.append(1000 * (now - watch.last))
        watch.last = now
    told("steps ms", steps)
    decode(engine, step.x)
    told("decoding ms", [watch.lap()])


def host_ms(engine: Engine, model: Model) -> list[float]:
    """Of network calls of a guided step, one after the other, each asked for while the device has nothing to do."""
    network, device = engine.config.network, engine.device
    x = torch.randn(2, *model.latent, device=device)
    cond = Conditioning(
        torch.randn(2, 77, network.context_dim, device=device, dtype=engine.dtype),
        torch.randn(2, network.adm_in_channels, device=device, dtype=engine.dtype),
    )
    times = []
    with torch.inference_mode():
        for _ in range(10):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            engine.predict(x, torch.full((2,), 500.0, device=device), cond)
            times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--leave-out", action="append", default=[], metavar="PASS", help="may be repeated")
    parser.add_argument(
        "--add", action="append", default=[], metavar="PASS", help="an approximate one; may be repeated"
    )
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--try-convolutions", action="store_true", help="let cuDNN choose by trying")
    args: argparse.Namespace = parser.parse_args()
    torch.backends.cudnn.benchmark = args.try_convolutions
    model, device = model_of(args), torch.device(device_of(args))
    if device.type == "cuda":
        torch.zeros(1, device=device)
    watch = Watch(device)
    dtype = (args.dtype or ["auto"])[0]
    engine = load_engine(model.config, model.file, device=device, dtype=dtype, attention=args.attention)
    told("loading ms", [watch.lap()])
    possible = [
        entry.name
        for entry in PASSES.values()
        if entry.why_not(engine) is None and (not entry.approximate or entry.name in args.add)
    ]
    engine = apply_passes(engine, [name for name in possible if name not in args.leave_out])
    told("passes ms", [watch.lap()])
    print(f"{', '.join(engine.passes) or 'no passes'}; attention {engine.attention}; {engine.dtype}")
    for i in range(args.pictures):
        draw(engine, model, (args.seed or 0) + i)
    if device.type == "cuda":
        told("host ms", host_ms(engine, model))
        print(f"memory GB: {torch.cuda.max_memory_allocated() / 1e9:.2f}, {torch.cuda.max_memory_reserved() / 1e9:.2f}")


if __name__ == "__main__":
    main()
