"""A recorded network gives the numbers of the network itself, whatever was recorded before and for whom."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support_tiny import tiny_config, write_tiny_checkpoint
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdxl_core.engine import Engine, load_engine
from sdxl_core.models.fused import Remembered
from sdxl_core.models.graphs import KEPT, Graphed
from sdxl_core.passes import apply_passes
from sdxl_core.types import Touch

Call = tuple[Tensor, Tensor, Tensor, Tensor]


class Tape(TorchDispatchMode):
    """A recording for the CPU: each operation is made again, from and to the same places in memory."""

    def __init__(self, run: Callable[[], Tensor], beside: object = None) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        with self:
            self.output = run()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.output.fill_(torch.nan)
        for func, args, kwargs, out in self.done:
            for place, again in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != again.data_ptr():  # a view has nothing to write
                    place.copy_(again)


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
    assert graphed.recorded == 1
    for step, out in zip(steps, had, strict=True):
        assert torch.equal(out, network(*step))


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
    assert graphed.recorded == KEPT
    fewer = call(5, words(1, rows=1), sizes[0])
    assert torch.equal(graphed(*fewer), engine.network(*fewer))
    assert graphed.recorded == KEPT - 1


def test_what_guidance_touches_and_what_is_trained_is_not_recorded(engine: Engine) -> None:
    graphed, step = Graphed(engine.network, Tape), call(1, words(1))
    touch = Touch(merge=lambda h, skip: (h * 2, skip))
    for _ in range(3):
        assert torch.equal(graphed(*step, touch), engine.network(*step, touch))
        with torch.inference_mode(False):
            assert torch.isfinite(graphed(*(part.clone() for part in call(1, words(1)))).detach()).all()
    assert graphed.recorded == 0


def test_weights_that_move_or_change_are_recorded_anew(checkpoint: Path) -> None:
    network = load_engine(tiny_config(), checkpoint, device="cpu", dtype="float32").network
    graphed, step = Graphed(network, Tape), call(1, words(1))
    before = [graphed(*step) for _ in range(3)]
    state = {name: value.clone() * 0.5 for name, value in graphed.state_dict().items()}
    graphed.load_state_dict(state, assign=True)
    assert graphed.recorded == 0
    after = [graphed(*step) for _ in range(3)]
    assert torch.equal(after[2], network(*step))
    assert not torch.equal(after[2], before[2])
    graphed.to(torch.float64)
    assert graphed.recorded == 0


def test_where_nothing_can_be_recorded_it_says_so_once_and_goes_on(engine: Engine) -> None:
    def refuse(run: Callable[[], Tensor], beside: object) -> Tape:
        raise torch.OutOfMemoryError("no room\nnot even a little")

    graphed, step = Graphed(engine.network, refuse), call(1, words(1))
    graphed(*step)
    with pytest.warns(UserWarning, match=r"no CUDA graph for \(2, 4, 4, 8\), which is slower: no room$"):
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_graphs_give_the_numbers_of_the_network_bit_for_bit(checkpoint: Path, dtype: str) -> None:
    plain = apply_passes(load_engine(tiny_config(), checkpoint, device="cuda", dtype=dtype)).network
    assert isinstance(plain, Graphed)
    graphed, network = plain, plain.network

    def on_cuda(step: Call) -> Call:
        x, t, crossattn, vector = (part.cuda() for part in step)
        kind = next(network.parameters()).dtype
        return x.to(kind), t, crossattn.to(kind), vector.to(kind)

    told = [tuple(part.cuda().to(next(network.parameters()).dtype) for part in words(seed)) for seed in (1, 2)]
    steps = [
        (*on_cuda(call(i, words(1), size))[:2], *told[which])
        for i, (which, size) in enumerate(
            [(0, (4, 8)), (0, (4, 8)), (0, (4, 8)), (1, (4, 8)), (1, (6, 6)), (0, (6, 6)), (0, (4, 8)), (1, (6, 6))]
        )
    ]
    for _ in range(2):
        had = [graphed(*step) for step in steps]
        assert graphed.recorded == 2
        for step, out in zip(steps, had, strict=True):
            assert torch.equal(out, network(*step))
        graphed.to("cpu")  # as a model that rests
        assert graphed.recorded == 0
        graphed.to("cuda")
