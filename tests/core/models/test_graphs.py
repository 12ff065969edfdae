"""A recorded network gives the numbers of the network itself, whatever was recorded before and for whom."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_reporter import Recorder
from support_tape import Tape
from support_tiny import tiny_config, write_tiny_checkpoint
from torch import Tensor

from sdxl_core.engine import Engine, load_engine
from sdxl_core.models.fused import Remembered
from sdxl_core.models.graphs import KEPT, TOWER_RUNS, CudaGraph, Graphed, Recorded, Tensors, graphed_tower
from sdxl_core.ops.attention import sdpa
from sdxl_core.passes import apply_passes
from sdxl_core.pipeline import decode
from sdxl_core.types import Touch

Call = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("graphs") / "tiny.safetensors")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    loaded = load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32")
    return apply_passes(loaded, ("fused_qkv", "kept_text", "kept_labels"))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def words(seed: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    draw, network = torch.Generator().manual_seed(seed), tiny_config().network
    return (
        torch.randn(rows, 77, network.context_dim, generator=draw),
        torch.randn(rows, network.adm_in_channels, generator=draw),
    )


def call(seed: int, told: tuple[Tensor, Tensor], size: tuple[int, int] = (4, 8)) -> Call:
    draw, rows = torch.Generator().manual_seed(seed), len(told[0])
    return torch.randn(rows, 4, *size, generator=draw), torch.full((rows,), 37.0 * seed), *told


def test_steps_of_two_prompts_in_turn_are_those_of_the_network_bit_for_bit(engine: Engine) -> None:
    network, graphed = engine.network, Graphed(engine.network, Tape)
    cat, dog = words(1), words(2)
    steps = [call(i, told) for i, told in enumerate((cat, cat, cat, dog, dog, cat, dog, dog, cat))]
    had = [graphed(*step) for step in steps]  # all held: none may be written over
    assert len(graphed.recorded) == 1
    for step, out in zip(steps, had, strict=True):
        assert torch.equal(out, network(*step))


def test_a_shape_is_recorded_once(engine: Engine) -> None:
    made: list[Tape] = []

    def record(run: Callable[[], Any], beside: object) -> Tape:
        made.append(Tape(run, beside))
        return made[-1]

    graphed = Graphed(engine.network, record)
    for i, told in enumerate((words(1), words(1), words(2)) * 2):
        graphed(*call(i, told))
    assert len(made) == 1


def test_either_side_of_what_is_told_may_change_alone(engine: Engine) -> None:
    graphed, (cat, cat_sizes), (dog, dog_sizes) = Graphed(engine.network, Tape), words(1), words(2)
    for told in ((cat, cat_sizes), (cat, cat_sizes), (dog, cat_sizes), (dog, dog_sizes), (cat, dog_sizes)):
        step = call(3, told)
        assert torch.equal(graphed(*step), engine.network(*step))


def test_words_that_were_written_into_outside_of_inference_mode_are_read_again(engine: Engine) -> None:
    graphed = Graphed(engine.network, Tape)
    with torch.inference_mode(False), torch.no_grad():
        cat, dog = words(1), words(2)
        step = call(3, cat)
        for _ in range(3):
            graphed(*step)
        cat[0].copy_(dog[0])
        assert torch.equal(graphed(*step), engine.network(*call(3, (dog[0].clone(), cat[1]))))


def test_every_shape_has_its_own_and_the_oldest_gives_way(engine: Engine) -> None:
    graphed, told = Graphed(engine.network, Tape), words(1)
    sizes = [(4, 4 + 2 * i) for i in range(KEPT + 1)]
    for size in (*sizes, *sizes[1:], *sizes[1:]):  # the first is gone before it comes a second time
        step = call(5, told, size)
        assert torch.equal(graphed(*step), engine.network(*step))
    assert len(graphed.recorded) == KEPT
    fewer = call(5, words(1, rows=1), sizes[0])
    assert torch.equal(graphed(*fewer), engine.network(*fewer))
    assert len(graphed.recorded) == KEPT - 1


def test_what_guidance_touches_and_what_is_trained_is_not_recorded(engine: Engine) -> None:
    graphed, step = Graphed(engine.network, Tape), call(1, words(1))
    touch = Touch(merge=lambda h, skip: (h * 2, skip))
    for _ in range(3):
        assert torch.equal(graphed(*step, touch), engine.network(*step, touch))
        with torch.inference_mode(False):
            assert torch.isfinite(graphed(*(part.clone() for part in call(1, words(1)))).detach()).all()
    assert len(graphed.recorded) == 0


def test_weights_that_move_or_change_are_recorded_anew(checkpoint: Path) -> None:
    network = load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32").network
    graphed, step = Graphed(network, Tape), call(1, words(1))
    before = [graphed(*step) for _ in range(3)]
    state = {name: value.clone() * 0.5 for name, value in graphed.state_dict().items()}
    graphed.load_state_dict(state, assign=True)
    assert len(graphed.recorded) == 0
    after = [graphed(*step) for _ in range(3)]
    assert torch.equal(after[2], network(*step))
    assert not torch.equal(after[2], before[2])
    graphed.to(torch.float64)
    assert len(graphed.recorded) == 0


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([RuntimeError("cannot be recorded\nby anyone")], "cannot be recorded"),
        ([RuntimeError()], "RuntimeError"),
        ([torch.OutOfMemoryError("CUDA out of memory. Tried ...")], "out of memory"),
        ([torch.OutOfMemoryError("CUDA ..."), RuntimeError("a previous error during capture")], "out of memory"),
    ],
)
def test_where_nothing_can_be_recorded_it_says_so_once_and_goes_on(
    engine: Engine, errors: list[RuntimeError], reason: str
) -> None:
    def refuse(run: Callable[[], Tensors], beside: object) -> Tape:
        try:
            raise errors[0]
        finally:
            raise errors[-1]

    graphed, step = Graphed(engine.network, refuse), call(1, words(1))
    graphed(*step)
    with pytest.warns(UserWarning, match=rf"no CUDA graph for \(2, 4, 4, 8\), which is slower: {reason}$"):
        graphed(*step)
    assert torch.equal(graphed(*call(1, words(2))), engine.network(*call(1, words(2))))


def test_a_refreshed_answer_keeps_its_place_and_one_that_was_never_given_is_not_made() -> None:
    linear = torch.nn.Linear(3, 2)
    layer, x = Remembered(linear), torch.randn(4, 3)
    layer.refresh(x)
    assert len(layer._answers) == 0
    answer = layer(x)
    x.mul_(2)
    assert layer(x) is answer
    layer.refresh(x)
    assert layer(x) is answer
    assert torch.equal(answer, linear(x))


def test_a_decode_that_finds_no_memory_gets_that_of_the_recordings(checkpoint: Path) -> None:
    tapes: list[weakref.ref[Tape]] = []

    def record(run: Callable[[], Tensors], beside: object) -> Tape:
        tape = Tape(run, beside)
        tapes.append(weakref.ref(tape))
        return tape

    def full_while_recorded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if any(tape() is not None for tape in tapes):
            raise torch.OutOfMemoryError("no room")
        return sdpa(q, k, v)

    engine = load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32")
    engine.first_stage.decoder.mid.attn_1.attention = full_while_recorded
    embedders = engine.conditioner.embedders
    embedders[0], embedders[1] = (graphed_tower(tower, record) for tower in engine.conditioner.towers)
    engine = replace(engine, network=Graphed(engine.network, record))
    latent, ids, step, reporter = (
        torch.randn(1, 4, 4, 8),
        torch.zeros(1, 77, dtype=torch.int64),
        call(1, words(1)),
        Recorder(),
    )
    expected = decode(engine, latent)
    for _ in range(TOWER_RUNS + 1):
        said = engine.network(*step), embedders[0](ids), embedders[1](ids)
    assert len(tapes) == 3
    assert np.array_equal(decode(engine, latent, reporter=reporter), expected)
    assert [note.rpartition(": ")[2] for note in reporter.notes] == ["decoding whole again, without CUDA graphs"]
    assert torch.equal(engine.network(*step), said[0])
    assert not engine.make_room()


@pytest.mark.parametrize("which", [0, 1])
def test_a_tower_says_of_every_prompt_what_it_says_without_recording(engine: Engine, which: int) -> None:
    plain = engine.conditioner.towers[which]
    graphed = graphed_tower(plain, Tape)
    assert isinstance(graphed, type(plain))
    assert {name: id(value) for name, value in graphed.named_parameters()} == {
        name: id(value) for name, value in plain.named_parameters()
    }
    prompts = [torch.randint(0, 49407, (1, 77), generator=torch.Generator().manual_seed(i)) for i in range(6)]
    had = [graphed(ids) for ids in prompts]
    assert len(prompts) > TOWER_RUNS
    assert len(graphed.recorded) == 1
    for ids, features in zip(prompts, had, strict=True):
        wanted = plain(ids)
        assert torch.equal(features.hidden, wanted.hidden)
        assert features.pooled is wanted.pooled is None or torch.equal(features.pooled, wanted.pooled)
    graphed.to(torch.float64)
    assert len(graphed.recorded) == 0
    assert graphed(prompts[0]).hidden.dtype == torch.float64
    graphed.to(torch.float32)


def test_nothing_holds_a_network_but_its_owner(checkpoint: Path) -> None:
    network = load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32").network
    graphed, gone = Graphed(network, Tape), weakref.ref(next(network.parameters()))
    for _ in range(3):
        graphed(*call(1, words(1)))
    gc.disable()
    try:
        del network, graphed
        assert gone() is None  # at once: its memory is wanted for another model
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_graphs_give_the_numbers_of_the_network_bit_for_bit(checkpoint: Path, dtype: str) -> None:
    engine = apply_passes(load_engine(tiny_config(), checkpoint, device="cuda", dtype=dtype))
    graphed = engine.network
    assert isinstance(graphed, Graphed)
    told = [tuple(part.to(engine.device, engine.dtype) for part in words(seed)) for seed in (1, 2)]
    turns = [(0, (4, 8))] * 3 + [(1, (4, 8)), (1, (6, 6)), (0, (6, 6)), (0, (4, 8)), (1, (6, 6)), (1, (4, 8))]
    steps = []
    for i, (which, size) in enumerate(turns):
        x, t = call(i, words(1), size)[:2]
        steps.append((x.to(engine.device, engine.dtype), t.to(engine.device), *told[which]))
    for _ in range(2):
        had = [graphed(*step) for step in steps]
        assert len(graphed.recorded) == 2
        for step, out in zip(steps, had, strict=True):
            assert torch.equal(out, graphed.network(*step))
        graphed.to("cpu")  # as a model that rests
        assert len(graphed.recorded) == 0
        graphed.to("cuda")


@pytest.mark.gpu
def test_cuda_graphs_of_the_towers_give_their_numbers_bit_for_bit(checkpoint: Path) -> None:
    engine = apply_passes(load_engine(tiny_config(), checkpoint, device="cuda", dtype="float16"))
    for tower in engine.conditioner.towers:
        prompts = [torch.randint(0, 49407, (1, 77), device="cuda") for _ in range(6)]
        had = [tower(ids) for ids in prompts]
        with torch.inference_mode(False), torch.enable_grad():  # which nothing is recorded for
            wanted = [tower(ids.clone()) for ids in prompts]
        for features, plain in zip(had, wanted, strict=True):
            assert torch.equal(features.hidden, plain.hidden)
            assert features.pooled is plain.pooled is None or torch.equal(features.pooled, plain.pooled)


@pytest.mark.gpu
def test_a_graph_that_finds_no_memory_leaves_the_device_as_it_was() -> None:
    def hungry(x: Tensor) -> Tensors:
        doubled = x * 2
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("no room")
        return (doubled,)

    run, x, stream = Recorded(hungry, CudaGraph), torch.randn(4, device="cuda"), torch.cuda.current_stream()
    run((x,))
    with pytest.warns(UserWarning, match="no CUDA graph for"):
        run((x,))
    assert torch.cuda.current_stream() == stream
    assert torch.equal(run((x,))[0], x * 2)


@pytest.mark.gpu
def test_memory_of_graphs_is_given_back() -> None:
    layer, x = torch.nn.Linear(1024, 1024, device="cuda"), torch.randn(2**16, 1024, device="cuda")
    recorded = Recorded(lambda rows: (layer(layer(rows)),), CudaGraph)
    wanted = recorded((x,))[0].clone()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    assert torch.equal(recorded((x,))[0], wanted)
    assert len(recorded) == 1
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() > before
    recorded.forget()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
