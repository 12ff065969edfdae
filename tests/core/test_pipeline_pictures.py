"""From latents to pictures, in the memory that there is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from support_pipeline import latents, plan_of
from support_reporter import Recorder
from support_tiny import tiny_config

from sdxl_core.engine import Engine, load_engine
from sdxl_core.pipeline import decode

ROOT = Path(__file__).parents[2]


def test_pictures_are_the_decoded_latents_in_8_bits(engine: Engine) -> None:
    x = latents(engine, plan_of(), plan_of(seed=2)) / 20
    pictures = decode(engine, x)
    with torch.no_grad():
        wanted = engine.first_stage.decode(x).clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert len(pictures) == 2
    for picture, exact in zip(pictures, wanted, strict=True):
        assert picture.shape == (32, 40, 3)
        assert picture.dtype == np.uint8
        assert picture.flags["C_CONTIGUOUS"]
        assert np.abs(picture - (exact + 1) * 127.5).max() <= 0.501
    assert 5 < pictures[0].std() < 120


def test_the_ends_of_the_range_are_black_and_white(spoilable: Engine) -> None:
    bias = spoilable.first_stage.get_parameter("decoder.conv_out.bias")
    x = torch.zeros(1, 4, 2, 2)
    with torch.no_grad():
        spoilable.first_stage.get_parameter("decoder.conv_out.weight").zero_()
        for value, level in ((-1.0, 0), (0.0, 128), (1.0, 255), (-9.0, 0), (9.0, 255)):
            bias.fill_(value)
            assert (decode(spoilable, x)[0] == level).all()


def test_bfloat16_decodes_to_nearly_the_same_picture(checkpoint: Path, engine: Engine) -> None:
    half = load_engine(tiny_config(), checkpoint, device="cpu", dtype="bfloat16")
    x = latents(engine, plan_of()) / 20
    difference = np.abs(decode(half, x)[0].astype(int) - decode(engine, x)[0])
    assert difference.mean() < 1.5  # levels of 255


def test_running_out_of_memory_is_one_error_and_no_crash(checkpoint: Path) -> None:
    code = f"""
import resource, sys
sys.path.insert(0, "tests")
import torch
from support_tiny import tiny_config
from sdxl_core import Plan, SdxlError, decode, load_engine, sample
engine = load_engine(tiny_config(), {str(checkpoint)!r}, device="cpu", dtype="float32")
decode(engine, torch.zeros(1, 4, 8, 8))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000, resource.RLIM_INFINITY))
size = dict(size=(768, 768), original_size=(8, 8), target_size=(8, 8))
plan = Plan(model="m", file="f", prompt="a cat", seed=0, steps=1, **size)
for work in (lambda: list(sample(engine, [plan])), lambda: decode(engine, torch.zeros(1, 4, 96, 96))):
    try:
        work()
    except SdxlError as error:
        print(error.exit_code, error.message.split(":")[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "5 not enough memory for a picture of 768x768",
        "5 out of memory while decoding a picture",
    ], done.stderr


def test_decoding_reports_every_picture(engine: Engine) -> None:
    reporter = Recorder()
    decode(engine, torch.zeros(2, 4, 2, 2), reporter=reporter)
    assert reporter.tasks == [["decoding", 2, "pictures", 2, True]]
