"""Walks that start from pictures, on a model of SDXL's shape."""

from typing import Any

import numpy as np
import pytest
import torch
from support_closed_form import legacy_ddpm
from support_networks import relative_error
from support_tiny import Kind, tiny_config
from torch import Tensor

from sdxl_core.canvas import Canvas, build_canvas
from sdxl_core.config import DiscretizationConfig, Encoding, MaskConfig, SamplerConfig, SourceConfig
from sdxl_core.engine import Engine
from sdxl_core.errors import ScheduleError
from sdxl_core.from_pictures import sample_from
from sdxl_core.pipeline import decode, sample
from sdxl_core.plan import Plan
from sdxl_core.source import SourceFile, build_source
from sdxl_core.source_pictures import Pixels, SourcePicture

SIZE = (32, 40)


def file_of(pixels: Pixels, name: str = "a.png") -> SourcePicture:
    return SourcePicture(SourceFile(name=name, sha256="0" * 64, size=(pixels.shape[0], pixels.shape[1])), pixels)


def job(
    seed: int = 1,
    strength: float | None = None,
    level: int | None = None,
    *,
    exact: bool = False,
    encoding: Encoding = "mode",
    kind: Kind = "base",
    **changes: Any,
) -> tuple[Plan, Canvas]:
    """A plan and its canvas; `level` fills the left half of a mask."""
    picture = file_of(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))
    mask = None
    if level is not None:
        pixels = np.zeros(SIZE, np.uint8)
        pixels[:, :16] = level
        mask = file_of(pixels, "mask.png")
    how = SourceConfig(strength=strength, steps_exact=exact, encoding=encoding, mask=MaskConfig(blur=0))
    source = build_source(tiny_config(kind), how, picture.file, None if mask is None else mask.file)
    given = {"prompt": "a cat", "steps": 4, "original_size": SIZE, "target_size": SIZE, **changes}
    plan = Plan(model="tiny-base", file="tiny.safetensors", size=SIZE, seed=seed, source=source, **given)
    return plan, build_canvas(source, SIZE, picture, mask)


def latents(engine: Engine, *jobs: tuple[Plan, Canvas]) -> Tensor:
    plans, canvases = zip(*jobs, strict=True)
    *_, last = sample_from(engine, plans, canvases)
    return last.x


@pytest.mark.parametrize("encoding", ["mode", "sample"])
def test_strength_1_is_the_picture_from_words_bit_for_bit(engine: Engine, encoding: Encoding) -> None:
    plan, canvas = job(strength=1.0, encoding=encoding)
    *_, words = sample(engine, [plan.model_copy(update={"source": None})])
    assert torch.equal(latents(engine, (plan, canvas)), words.x)


def test_less_strength_stays_nearer_to_the_picture(engine: Engine) -> None:
    _, canvas = job(strength=0.25)
    with torch.inference_mode():
        image = torch.from_numpy(canvas.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        start = engine.first_stage.encode(image)
    far = [float((latents(engine, job(strength=s)) - start).norm()) for s in (0.25, 0.5, 0.75)]
    assert far == sorted(far)


@pytest.mark.parametrize("encoding", ["mode", "sample"])
def test_a_batch_is_its_pictures_one_by_one(engine: Engine, encoding: Encoding) -> None:
    jobs = [job(seed, 0.5, 255, encoding=encoding) for seed in (1, 2)]
    together = latents(engine, *jobs)
    for row, one in zip(together, jobs, strict=True):
        assert relative_error(row[None], latents(engine, one)) <= 1e-4


def test_what_is_kept_of_the_latent_is_the_pictures(engine: Engine) -> None:
    plan, canvas = job(strength=1.0, level=255)
    end = latents(engine, (plan, canvas))
    image = torch.from_numpy(canvas.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        start = engine.first_stage.encode(image)
    torch.testing.assert_close(end[..., 2:], start[..., 2:], rtol=1e-4, atol=1e-4)
    assert (end[..., :2] - start[..., :2]).abs().max() > 0.1


def test_outside_the_mask_pixels_are_the_pictures_byte_for_byte(engine: Engine) -> None:
    plan, canvas = job(strength=1.0, level=255)
    picture = canvas.finish(decode(engine, latents(engine, (plan, canvas)))[0])
    np.testing.assert_array_equal(picture[:, 16:], canvas.image[:, 16:])
    assert (picture[:, :16] != canvas.image[:, :16]).any()


def test_a_white_mask_is_none_at_all(engine: Engine) -> None:
    picture = file_of(np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8))
    white = file_of(np.full(SIZE, 255, np.uint8), "mask.png")
    plan, canvas = job(strength=0.5)
    source = build_source(tiny_config(), plan.source.how if plan.source else SourceConfig(), picture.file, white.file)
    masked = plan.model_copy(update={"source": source}), build_canvas(source, SIZE, picture, white)
    torch.testing.assert_close(latents(engine, masked), latents(engine, (plan, canvas)))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("schedule", ["legacy_ddpm", "edm"])
def test_strength_is_a_share_of_the_steps_of_every_schedule(engine: Engine, sampler: str, schedule: str) -> None:
    changes = {"sampler": SamplerConfig(name=sampler), "discretization": DiscretizationConfig(name=schedule)}  # type: ignore[arg-type]
    plan, canvas = job(strength=0.5, **changes)
    whole = plan.model_copy(update={"source": None}).sigmas()
    assert plan.sigmas() == whole[2:]
    walked = list(sample_from(engine, [plan], [canvas]))
    assert len(walked) == 2
    assert sum(step.calls for step in walked) == plan.model_calls()


def test_exactly_n_steps() -> None:
    plan, _ = job(strength=0.25, exact=True)
    assert plan.sigmas() == legacy_ddpm(16)[-5:]
    with pytest.raises(ScheduleError, match=r"4 steps at strength 0\.002 are the end of a schedule of 2000 steps"):
        job(strength=0.002, exact=True)


def test_a_plan_with_a_picture_comes_through_json() -> None:
    plan, _ = job(strength=0.3, level=255)
    assert Plan.from_json(plan.to_json()) == plan


def test_plans_that_start_from_pictures_are_not_drawn_from_words(engine: Engine) -> None:
    plan, canvas = job(strength=0.5)
    with pytest.raises(ValueError, match="sample_from"):
        sample(engine, [plan])
    with pytest.raises(ValueError, match="every plan needs a source"):
        sample_from(engine, [plan.model_copy(update={"source": None})], [canvas])


def test_masked_and_whole_pictures_do_not_share_a_batch() -> None:
    masked, whole, other = job(strength=0.5, level=255)[0], job(strength=0.5)[0], job(2, strength=0.5)[0]
    assert whole.shares_batch(other)
    assert not whole.shares_batch(masked)
    assert not whole.shares_batch(job(strength=0.6)[0])
    assert not whole.shares_batch(whole.model_copy(update={"source": None}))
