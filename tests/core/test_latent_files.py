"""Saved latents, written and read."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from sdxl_core.canvas import Frame
from sdxl_core.errors import CheckpointError
from sdxl_core.latent_files import encode_latent, read_latent
from sdxl_core.plan import Plan
from sdxl_core.records import Record

RNG = np.random.default_rng(0)
LATENT = RNG.standard_normal((4, 2, 3)).astype(np.float32)


def record(prompt: str) -> Record:
    sizes = {"size": (16, 24), "original_size": (16, 24), "target_size": (16, 24)}
    plan = Plan(model="tiny", file="tiny.safetensors", prompt=prompt, seed=1, steps=3, **sizes)  # type: ignore[arg-type]
    return Record(software="sdxl", plan=plan, sigmas=plan.sigmas(), model_calls=3)


def frame() -> Frame:
    below, alpha = RNG.integers(0, 256, (20, 30, 3), np.uint8), RNG.integers(0, 256, (20, 30), np.uint8)
    return Frame(below, alpha, (1, 2, 17, 26))


def test_a_latent_carries_its_record(tmp_path: Path) -> None:
    data = encode_latent(LATENT, record("猫"))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["sdxl"])["plan"]["prompt"] == "猫"
    (tmp_path / "a.safetensors").write_bytes(data)
    read = read_latent(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read.values, LATENT)
    assert (read.record, read.frame) == (record("猫"), None)


def test_a_latent_keeps_the_picture_around_it(tmp_path: Path) -> None:
    around, drawn = frame(), RNG.integers(0, 256, (16, 24, 3), np.uint8)
    (tmp_path / "a.safetensors").write_bytes(encode_latent(LATENT, None, around))
    read = read_latent(tmp_path / "a.safetensors")
    assert read.frame is not None
    np.testing.assert_array_equal(read.frame.finish(drawn), around.finish(drawn))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame.below", np.zeros((20, 30), np.uint8)),
        ("frame.below", np.zeros((20, 30, 3), np.float32)),
        ("frame.alpha", np.zeros((20, 31), np.uint8)),
        ("frame.box", np.array([1, 2, 17], np.int64)),
        ("frame.box", np.array([1, 2, 21, 26], np.int64)),
        ("frame.box", np.array([5, 2, 5, 26], np.int64)),
        ("frame.box", np.array([-1, 2, 17, 26], np.int64)),
    ],
)
def test_a_damaged_surrounding_is_refused(tmp_path: Path, name: str, value: object) -> None:
    tensors = load(encode_latent(LATENT, None, frame()))
    (tmp_path / "a.safetensors").write_bytes(save({**tensors, name: value}))
    with pytest.raises(CheckpointError, match="what it keeps of a picture around the latent is damaged"):
        read_latent(tmp_path / "a.safetensors")
