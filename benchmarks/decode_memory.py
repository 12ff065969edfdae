"""What decoding one picture takes with SDXL's real first stage: whole, in exact pieces, in blended tiles.

    python benchmarks/decode_memory.py --size 512 --size 1024
    python benchmarks/decode_memory.py --size 1024 --device cuda --dtype bfloat16

Every decode is a process of its own with random weights of the published shape, so that its peak is its own: the
largest resident memory on a CPU, the largest allocation on a GPU, in both cases less what was there before the decode,
weights included. The table says how far the picture is from the whole one, as a share of its range of values.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdxl_core.models.autoencoder import AutoencoderKL

MODES = ("whole", "pieces", "pieces without the finest level", "tiles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, action="append", help="side of the picture in pixels; may be repeated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--mode", action="append", choices=MODES, help="leave out the others")
    parser.add_argument("--strip-mib", type=int, help="size of a strip; default: what the program takes")
    parser.add_argument("--child", nargs=3, metavar=("MODE", "SIZE", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help="count the bytes of tensors instead, without arithmetic")
    args = parser.parse_args()
    if args.count:
        count(args)
        return
    if args.child:
        mode, size, file = args.child
        measure(mode, int(size), args, Path(file))
        return
    print(f"{args.device}, {args.dtype}\n")
    print("| size | way | seconds (all cores) | peak of the decode | peak of the process | furthest from whole |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for size in args.size or [512, 1024]:
            for mode in args.mode or MODES:
                file = Path(folder) / f"{MODES.index(mode)}.pt"
                command = [sys.executable, *sys.argv, "--child", mode, str(size), str(file)]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                facts = json.loads(told)
                apart = _apart(file, Path(folder) / "0.pt")
                print(
                    f"| {size}x{size} | {mode} | {facts['seconds']:.1f} | {facts['peak_bytes'] / 1e6:.0f} MB "
                    f"| {facts['process_bytes'] / 1e6:.0f} MB | {apart} |",
                    flush=True,
                )


def count(args: argparse.Namespace) -> None:
    """Decode tensors that have shapes and no values, and print the most bytes that were alive at once."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch
    from support_memory import LiveBytes

    from sdxl_core.config import FirstStageConfig
    from sdxl_core.devices import DTYPES
    from sdxl_core.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL(FirstStageConfig()).to(DTYPES[args.dtype])
    print("| size | way | tensors alive |\n| --- | --- | --- |")
    for size in args.size or [512, 1024]:
        latent = torch.empty(1, 4, size // 8, size // 8, device="meta", dtype=DTYPES[args.dtype])
        for mode in args.mode or MODES:
            with torch.no_grad(), LiveBytes() as live:
                run(mode, model, latent, args)
            print(f"| {size}x{size} | {mode} | {live.peak / 1e6:.0f} MB |", flush=True)


def run(mode: str, model: "AutoencoderKL", latent: "torch.Tensor", args: argparse.Namespace) -> "torch.Tensor":
    """Decode in one of the ways."""
    from sdxl_core.first_stage import TILE, TILE_OVERLAP, pieces_for
    from sdxl_core.models.autoencoder_strips import decode_in_pieces
    from sdxl_core.ops.tiles import blended

    if mode == "whole":
        return model.decode(latent)
    if mode == "tiles":
        return blended(model.decode, latent, factor=8, tile=TILE, overlap=TILE_OVERLAP)
    pieces = pieces_for(latent.device, keep_finest=mode == "pieces")
    if args.strip_mib:
        pieces = replace(pieces, strip_bytes=args.strip_mib * 2**20)
    return decode_in_pieces(model, latent, pieces)


def measure(mode: str, size: int, args: argparse.Namespace, file: Path) -> None:
    """Decode once; print what it took as JSON and leave the image in `file`."""
    import torch

    from sdxl_core.config import FirstStageConfig
    from sdxl_core.devices import DTYPES, settle_arithmetic
    from sdxl_core.models.autoencoder import AutoencoderKL

    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    settle_arithmetic(device)
    torch.manual_seed(0)
    model = AutoencoderKL(FirstStageConfig()).eval().to(device, dtype)
    model.encoder = None  # type: ignore[assignment]  # its weights would hide what a decode takes
    latent = torch.randn(1, 4, size // 8, size // 8).to(device, dtype)
    with torch.inference_mode():
        model.decode(latent[:, :, :4, :4])  # libraries load their kernels
        before, began = _memory(device, peak=False), _clock(device)
        image = run(mode, model, latent, args).float().cpu()
    seconds, peak = _clock(device) - began, _memory(device, peak=True)
    torch.save(image, file)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak - before, "process_bytes": peak}))


def _clock(device: "torch.device") -> float:
    """Seconds of all cores on a CPU, which other work there does not lengthen; of the wall on a GPU."""
    return time.process_time() if device.type == "cpu" else time.monotonic()


def _memory(device: "torch.device", *, peak: bool) -> int:
    """Bytes of this process on the device, now or at the worst."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    name = "VmHWM" if peak else "VmRSS"  # of /proc: the kilobytes that getrusage gives too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _apart(file: Path, whole: Path) -> str:
    """Largest difference to the whole picture, as a share of its range of values."""
    import torch

    if not whole.exists():
        return "-"
    image, reference = torch.load(file), torch.load(whole)
    return f"{float((image - reference).abs().max() / (reference.max() - reference.min())):.1e}"


if __name__ == "__main__":
    main()
