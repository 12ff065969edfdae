"""Plans to latents, and on to pictures: conditioning, guidance, sampling. Owns inference mode; holds no formula."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.config import Decoding
from sdxl_core.devices import memory_guard, require_memory
from sdxl_core.diffusion.discretization import trained_range
from sdxl_core.diffusion.guiders import Prompts, build_guider
from sdxl_core.diffusion.noise import PictureNoise, Stream, pure_noise
from sdxl_core.diffusion.repaint import Kept, edit_denoise
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.engine import Engine
from sdxl_core.finite import checked
from sdxl_core.first_stage import Picture, decode_latents, least_memory_bytes
from sdxl_core.ops.transfer import sent
from sdxl_core.plan import Plan
from sdxl_core.progress import SILENT, Reporter
from sdxl_core.resolutions import check_size
from sdxl_core.types import Conditioning, Denoise, Step

_SAMPLING_HINT = "take a smaller --size or a smaller --batch-size"


def sample(engine: Engine, plans: Sequence[Plan], noise: PictureNoise | None = None) -> Iterator[Step]:
    """Walk one batch from noise to latents, or to where a refiner goes on; stop early by not asking for more.

    Row i of every step belongs to plans[i] and is what plans[i] gives alone, up to the rounding of kernels that see
    another batch size. No network is run before the first step is asked for; on CUDA the step after the one that is
    handed on has been begun.

    Args:
        engine: the model that the plans name.
        plans: one a picture; they may differ in words, seed, sizes told to the network and scores alone, see
            `Plan.shares_batch`.
        noise: of the pictures, for a caller that goes on with `refine`; None makes it here.

    Yields:
        `steps` steps; the last one's x holds the latents (b, 4, h/8, w/8), float32, for `decode`. With a refiner as
        many as the model walks; the last one's x is for `refine`.

    Raises:
        ValueError: no plans, plans that cannot share a batch, or plans for another model.
        UsageError: a size that the model's first stage cannot divide.
        MemoryExhaustedError: also while stepping.
        NumericsError: while stepping, when a latent is not finite.
    """
    if plans and plans[0].source is not None:
        raise ValueError("the plans start from pictures: see sample_from")
    if noise is None:
        noise = picture_noise(engine, plans)
    sigmas = plans[0].sigmas()
    return walk(engine, plans, begin(plans[0], noise(), sigmas[0]), sigmas, noise, schedule=plans[0].schedule())


def begin(plan: Plan, eps: Tensor, sigma: float) -> Tensor:
    """The latents at level sigma that pictures without a source start from, made of standard normal eps."""
    return pure_noise(eps, sigma, plan.conventions.start, trained_range(plan.denoiser)[1])


def refine(engine: Engine, plans: Sequence[Plan], latents: Tensor, noise: PictureNoise) -> Iterator[Step]:
    """Finish one batch with the second model of its plans.

    Args:
        engine: the model that the plans name as their refiner.
        plans: one a picture, as for `sample`.
        latents: (b, 4, h/8, w/8) float32: what the first model has left, noisy or clean as the mode wants it.
        noise: what the first model drew from, going on where it is.

    Yields:
        The steps of the second model; the last one's x is for `decode`.

    Raises:
        ValueError, UsageError, MemoryExhaustedError, NumericsError: as `walk`.
    """
    sigmas = plans[0].refiner_sigmas()
    if plans[0].switch() is not None:
        x, schedule = latents, plans[0].schedule()
    else:
        noise.begin_another_walk()
        x, schedule = latents + sigmas[0] * noise().to(latents.device), sigmas
    return walk(engine, [plan.refiner_plan() for plan in plans], x, sigmas, noise, schedule=schedule)


def picture_noise(engine: Engine, plans: Sequence[Plan]) -> PictureNoise:
    """The generators of a batch, one a picture, before their first draw.

    Raises:
        ValueError: no plans, or plans that cannot share a batch.
        UsageError: a size that the model's first stage cannot divide.
    """
    _check_batch(plans)
    check_size(plans[0].size, engine.config)
    streams = [Stream(plan.seed, plan.batch_row, plan.batch_rows, plan.conventions.noise) for plan in plans]
    return PictureNoise(streams, _latent_shape(engine, plans[0]), engine.device)


def walk(
    engine: Engine,
    plans: Sequence[Plan],
    x: Tensor,
    sigmas: Sequence[float],
    noise: PictureNoise,
    *,
    schedule: Sequence[float] | None = None,
    kept: Kept | None = None,
    shown: Tensor | None = None,
) -> Iterator[Step]:
    """Walk one batch from latents at a given noise level over given levels: what every way to start a picture shares.

    A picture from words starts at `noise.start(sigmas[0])`, one from a clean latent at `latent + sigmas[0] * noise()`;
    what another engine has left at sigmas[0] is taken as it is. The walk of one engine may so be cut at any level and
    gone on by another: without history in the sampler this gives the whole walk bit for bit.

    Args:
        engine: the model that the plans name.
        plans: one a picture, as for `sample`; words, guidance and sampler are theirs, the levels are not.
        x: (b, 4, h/8, w/8) float32 latents at noise level sigmas[0].
        sigmas: n + 1 strictly decreasing levels; the walk ends on the last, which may be above 0.
        noise: of the pictures, going on where it is: the same object for all parts of one walk.
        schedule: the levels of the whole walk, whose steps guidance counts; None where `sigmas` is all of it.
        kept: what stays of the pictures, a row a plan.
        shown: (b, c, h/8, w/8) what the network is shown beside x; just where it takes more channels than x has.

    Yields:
        n steps.

    Raises:
        ValueError: as `sample`, or x is not of the plans' number and size.
        UsageError, MemoryExhaustedError, NumericsError: as `sample`.
    """
    plans = tuple(plans)
    _check_batch(plans)
    if plans[0].denoiser != engine.config.denoiser:
        raise ValueError(f"the plan is for a denoiser that {engine.config.name} does not have")
    check_size(plans[0].size, engine.config)
    if (wanted := (len(plans), *_latent_shape(engine, plans[0]))) != tuple(x.shape):
        raise ValueError(f"x is {tuple(x.shape)} and the plans are for {wanted}")
    height, width = plans[0].size
    if engine.device.type == "cpu":  # CUDA refuses by itself; a CPU process would be killed after hours of sampling
        needed = least_memory_bytes(engine.first_stage, plans[0].size, plans[0].decoding)
        require_memory(needed, engine.device, f"a picture of {width}x{height}", _SAMPLING_HINT)
    steps = _steps(engine, plans, x, sigmas, noise, sigmas if schedule is None else schedule, kept, shown)
    return _guarded(engine, plans, steps, len(sigmas) - 1)


def condition(engine: Engine, plans: Sequence[Plan], *, uncond: bool) -> Prompts:
    """What the network is told, a row a plan; the unconditional side where it is wanted.

    Every distinct prompt runs through the text towers once, by itself, so that its rows do not depend on the batch; the
    engine remembers them for later batches.
    """
    said = [plan.requests() for plan in plans]
    parts = tuple(_encode(engine, [(request, False) for request, _ in part]) for part in zip(*said, strict=True))
    weights = None
    if len(parts) > 1:
        weights = sent(torch.tensor([[weight for _, weight in row] for row in said]), engine.device)
    if not uncond:
        return Prompts(parts, weights)
    negative = _encode(engine, [(plan.negative_request(), plan.zero_negative) for plan in plans])
    if plans[0].guider.perp_neg is None:
        return Prompts(parts, weights, uncond=negative)
    empty = _encode(engine, [(plan.empty_request(), plan.empty_negative == "zeros") for plan in plans])
    return Prompts(parts, weights, uncond=empty, negative=negative)


def decode(
    engine: Engine, latents: Tensor, *, decoding: Decoding = "auto", reporter: Reporter = SILENT
) -> list[Picture]:
    """Turn latents (b, 4, h/8, w/8) into b pictures (h, w, 3) with the engine's first stage; see `decode_latents`."""
    first_stage, make_room = engine.first_stage, engine.make_room
    return decode_latents(first_stage, latents, decoding=decoding, reporter=reporter, make_room=make_room)


def _guarded(engine: Engine, plans: Sequence[Plan], steps: Iterator[Step], count: int) -> Iterator[Step]:
    height, width = plans[0].size
    doing = f"sampling {len(plans)} of {width}x{height}"
    steps = checked(steps, plans, engine.dtype, count, ahead=engine.device.type == "cuda")
    while True:
        # Entered anew for every step: an abandoned generator must not leave its caller in inference mode.
        with torch.inference_mode(), memory_guard(engine.device, doing, _SAMPLING_HINT):
            step = next(steps, None)
        if step is None:
            return
        yield step


def _steps(
    engine: Engine,
    plans: Sequence[Plan],
    x: Tensor,
    sigmas: Sequence[float],
    noise: PictureNoise,
    schedule: Sequence[float],
    kept: Kept | None,
    shown: Tensor | None,
) -> Iterator[Step]:
    plan = plans[0]
    denoise = _denoise(engine, plans, schedule, shown)
    if kept is not None:
        denoise = kept.around(denoise, sigmas)
    sampler = SAMPLERS[plan.sampler.name]
    yield from sampler.fn(denoise, x.to(engine.device), sigmas, noise=noise, **plan.sampler.options())


def _denoise(engine: Engine, plans: Sequence[Plan], schedule: Sequence[float], shown: Tensor | None) -> Denoise:
    plan, source = plans[0], plans[0].source
    denoiser = engine.denoiser.snapping(plan.conventions.snap)
    if source is not None and plan.edits:
        prompts = condition(engine, plans, uncond=True).showing(shown)
        scales = plan.guider.scale, source.how.image_guidance
        return edit_denoise(denoiser, engine.predict, prompts, *scales)
    keep_uncond = SAMPLERS[plan.sampler.name].uncond
    guider = build_guider(plan.guider, schedule, engine.config.network, keep_uncond=keep_uncond)
    prompts = condition(engine, plans, uncond=guider.wants_uncond).showing(shown)
    return guider.bind(denoiser, engine.predict, prompts)


def _check_batch(plans: Sequence[Plan]) -> None:
    if not plans or not all(plans[0].shares_batch(plan) for plan in plans[1:]):
        raise ValueError("a batch is one or more plans that share all but words, seed, sizes and scores")


def _latent_shape(engine: Engine, plan: Plan) -> tuple[int, int, int]:
    config = engine.config.first_stage
    return config.z_channels, plan.size[0] // config.factor, plan.size[1] // config.factor


def _encode(engine: Engine, wanted: Sequence[tuple[ConditionRequest, bool]]) -> Conditioning:
    """A row for every (request, whether its text is zeros)."""
    rows = {(request, zero): _row(engine, request, zero) for request, zero in dict.fromkeys(wanted)}
    return Conditioning.cat([rows[key] for key in wanted]).to(engine.device, engine.dtype)


def _row(engine: Engine, request: ConditionRequest, zero: bool) -> Conditioning:
    conditioner = engine.conditioner
    if zero:
        told: Conditioning = conditioner([request], force_zero=("txt",))
        return told.without_words() if engine.leaves_out_blank else told
    return conditioner.assemble(engine.texts.encode(conditioner, request), conditioner.numbers([request]))
