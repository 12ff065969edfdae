import contextlib
import json
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sdxl_core.config import DiscretizationConfig, SamplerConfig
from sdxl_core.errors import OutputError
from sdxl_core.guider_config import ApgConfig, GuiderConfig, IntervalConfig, SegConfig, TcfgConfig
from sdxl_core.picture_files import PictureError, parse_parameters, read_record
from sdxl_core.plan import Plan
from sdxl_core.records import Record, Weights, encode_picture, parameters_text

PIXELS: NDArray[np.uint8] = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
FORMATS = ("png", "jpg", "webp")


def plan(prompt: str = "a cat", **changes: object) -> Plan:
    values: dict[str, object] = {
        "model": "micro",
        "file": "micro.safetensors",
        "prompt": prompt,
        "seed": 7,
        "size": (16, 24),
        "original_size": (16, 24),
        "target_size": (16, 24),
        "steps": 4,
    }
    return Plan(**(values | changes))  # type: ignore[arg-type]


def record(plan: Plan) -> Record:
    weights = (Weights(role="model", name=plan.file, sha256="ab" * 32),)
    return Record(software="sdxl 9.9", plan=plan, sigmas=plan.sigmas(), model_calls=plan.model_calls(), weights=weights)


def test_the_parameters_text_is_the_one_other_tools_read() -> None:
    text = parameters_text(
        record(
            plan(
                negative="blurred",
                sampler=SamplerConfig(name="dpmpp_2m"),
                discretization=DiscretizationConfig(name="edm", rho=7.0),
                guider=GuiderConfig(scale=6.5),
            )
        )
    )
    assert text == (
        "a cat\nNegative prompt: blurred\n"
        "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, Schedule max sigma: 14.6146, Schedule min sigma: 0.0292, "
        "Schedule rho: 7, CFG scale: 6.5, Seed: 7, Size: 24x16, Model hash: ababababab, Model: micro, RNG: CPU, "
        "Version: sdxl 9.9"
    )


def test_the_parameters_text_names_the_ways_of_guidance() -> None:
    interval = IntervalConfig(low=0.28, high=5.42)
    guided = plan(guider=GuiderConfig(apg=ApgConfig(), seg=SegConfig(), tcfg=TcfgConfig(), interval=interval))
    made = record(guided)
    _, _, pairs = parse_parameters(parameters_text(made))
    assert pairs["Guidance"] == "tcfg + apg + seg + sigma 0.28..5.42"
    assert Plan.from_json(guided.to_json()) == guided


def test_the_parameters_text_reads_back() -> None:
    made = parameters_text(record(plan("a cat\non two lines", negative="x: y, z", file='odd, "name": 1.safetensors')))
    prompt, negative, pairs = parse_parameters(made)
    assert (prompt, negative) == ("a cat\non two lines", "x: y, z")
    assert pairs["Model"] == 'odd, "name": 1'
    assert (pairs["Seed"], pairs["Size"], pairs["Schedule type"]) == ("7", "24x16", "SGM Uniform")


def test_a_text_that_is_no_parameters_is_all_prompt() -> None:
    assert parse_parameters("just words, and: more") == ("just words, and: more", "", {})


PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=PROMPTS, negative=PROMPTS)
def test_every_prompt_comes_back_as_typed(tmp_path: Path, format: str, prompt: str, negative: str) -> None:
    made = record(plan(prompt, negative=negative))
    path = tmp_path / f"a.{format}"
    path.write_bytes(encode_picture(PIXELS, format, made))
    back = read_record(path)
    assert back.problems == []
    assert Record.model_validate_json(json.dumps(back.record)) == made
    assert Plan.from_json(json.dumps((back.record or {})["plan"])) == made.plan
    assert back.parameters == parameters_text(made)
    assert back.machine_made
    assert (back.format, back.width, back.height) == (format, 24, 16)


def test_a_png_keeps_its_pixels_and_is_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_picture(PIXELS, "png", record(plan("猫 [red] 🐱"))))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), PIXELS)
        assert str(image.info["parameters"]).startswith("猫 [red] 🐱\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_record_nothing_is_said(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"a.{format}"
    path.write_bytes(encode_picture(PIXELS, format, None))
    back = read_record(path)
    assert (back.texts, back.record, back.machine_made, back.problems) == ({}, None, False, [])


def test_a_record_that_a_jpeg_cannot_hold_is_an_error() -> None:
    with pytest.raises(OutputError, match="does not fit") as caught:
        encode_picture(PIXELS, "jpg", record(plan("x" * 100_000)))
    assert "png" in str(caught.value.hint)


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert encode_picture(PIXELS, "png", record(plan())) == encode_picture(PIXELS, "png", record(plan()))


def chunk(kind: bytes, data: bytes, check: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if check is None else check
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(*chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        (chunk(b"tEXt", b"sdxl\0" + b"x" * 2**20), "was skipped"),
        (chunk(b"zTXt", b"sdxl\0\0" + zlib.compress(b"x" * 2**26)), "longer than"),
        (chunk(b"iTXt", b"sdxl\0\1\0\0\0" + zlib.compress(b"x" * 2**26)), "longer than"),
        (chunk(b"iTXt", b"sdxl\0\1\0\0\0garbage"), "cannot be read"),
        (chunk(b"iTXt", b"sdxl\0\0\0\0\0\xff\xfe"), "cannot be read"),
        (chunk(b"tEXt", b"sdxl\0{}", check=1), "checksum"),
        (chunk(b"tEXt", b"sdxl\0" + b"[" * 100_000), "nested too deeply"),
        (chunk(b"tEXt", b"sdxl\0[1]"), "not a JSON object"),
        (chunk(b"tEXt", b"sdxl\0{"), "cannot be read"),
        (chunk(b"tEXt", b'sdxl\0{"a": NaN}'), "NaN is not a number"),
        (chunk(b"tEXt", b'sdxl\0{"a": "\\ud800"}'), "cannot be read"),
        (b"\xff\xff\xff\xffIDAT", "cut off"),
        (b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(70)), "was skipped"),
    ],
)
def test_a_hostile_field_is_one_problem(tmp_path: Path, hostile: bytes, problem: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(chunk(b"tEXt", b"first\0kept"), hostile))
    back = read_record(path)
    assert problem in " ".join(back.problems)
    assert back.texts["first"] == "kept"
    assert (back.width, back.height, back.record) == (24, 16, None)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"GIF89a" + b"\0" * 20, b"<!doctype html>"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match="not a PNG, JPEG or WebP"):
        read_record(path)


def test_a_file_that_the_system_fails_to_read() -> None:
    with pytest.raises(PictureError) as error:
        read_record("/proc/self/mem")
    assert error.value.message == "/proc/self/mem: Input/output error"


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "not a file"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(PictureError, match=says):
            read_record(path)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_raise_nothing_but_picture_errors(tmp_path: Path, format: str) -> None:
    whole = encode_picture(PIXELS, format, record(plan("a cat " * 20)))
    random_ = random.Random(format)
    path = tmp_path / f"a.{format}"
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(random_.randint(1, 6)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        if random_.random() < 0.3:
            del data[random_.randrange(len(data)) :]
        path.write_bytes(data)
        with contextlib.suppress(PictureError):
            read_record(path)
