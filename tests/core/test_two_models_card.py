"""What `--memory` promises of a card, held on a stand-in that counts its bytes."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from support_card import NAME, PLUGS_IN, Card, plugged_in
from support_kernels import (
    add,
    doubled,
    doubling_sums,
    gated,
    group_norm,
    interleave,
    join,
    layer_norm,
    normed_sums,
    outputs,
)
from support_networks import BASE, randn, randomized
from support_tape import Tape
from support_tiny import tiny_config, write_tiny_checkpoint
from torch import Tensor, nn

from sdxl_core.checkpoints.load import CHUNK_BYTES
from sdxl_core.devices import free_memory_bytes
from sdxl_core.engine import Engine, load_engine
from sdxl_core.errors import MemoryExhaustedError
from sdxl_core.models import winograd_blocks
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.models.fused import FusedSelfAttention, PhaseUpsample, join_text
from sdxl_core.models.fused_transformer import fuse_transformers
from sdxl_core.models.fused_unet import fuse_norms
from sdxl_core.models.graphs import Graphed
from sdxl_core.models.network_kernels import NetworkKernels, added_in_place
from sdxl_core.models.transformer import TransformerBlock
from sdxl_core.models.unet import UNet, Upsample
from sdxl_core.models.winograd_blocks import SummedConv, SummedDoubling, WinogradKernels, sum_convolutions
from sdxl_core.ops.layers import replace_layers
from sdxl_core.passes import PASSES, Beside, apply_passes
from sdxl_core.pipeline import decode, picture_noise, refine, sample
from sdxl_core.plan import Plan
from sdxl_core.refiner import RefinerPlan
from sdxl_core.two_models import Load, Residence, TwoModels, choose_residence

pytestmark = [
    pytest.mark.skipif(not PLUGS_IN, reason="this PyTorch takes no device from Python"),
    pytest.mark.usefixtures("card"),  # which gives the device its name
]

SIZE = 16, 16
PLAN = Plan(
    model="tiny-base",
    file="tiny_base.safetensors",
    prompt="a cat",
    seed=1,
    steps=2,
    size=SIZE,
    original_size=SIZE,
    target_size=SIZE,
    refiner=RefinerPlan(model="tiny-refiner", file="tiny_refiner.safetensors", mode="share@0.5"),
)


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    with plugged_in() as card:
        yield card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    for kind in ("base", "refiner"):
        write_tiny_checkpoint(folder / f"{kind}.safetensors", kind)  # type: ignore[arg-type]
    return folder


def test_the_stand_in_has_memory_of_its_own(card: Card) -> None:
    here, before = randn(3, 4), card.now
    there = here.to(NAME)
    assert card.now - before == here.nbytes
    part = there[1:].T
    part.mul_(2)
    assert card.now - before == here.nbytes  # a view takes nothing, and what is written there stays there
    assert torch.equal(there.cpu(), torch.cat([here[:1], 2 * here[1:]]))
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    del there
    assert card.now - before == here.nbytes
    del part
    assert card.now == before


def loads(folder: Path, device: torch.device) -> tuple[Load, Load]:
    """Of both models, with all the passes that they can have on the card."""
    there = Beside(torch.device(NAME), torch.float32)
    passes = [name for name, entry in PASSES.items() if not entry.approximate and entry.why_not(there) is None]

    def load(kind: str, first_stage: AutoencoderKL | None) -> Engine:
        config, path = tiny_config(kind), folder / f"{kind}.safetensors"  # type: ignore[arg-type]
        return apply_passes(load_engine(config, path, first_stage=first_stage, device=device, dtype="float32"), passes)

    return partial(load, "base"), partial(load, "refiner")


def weights(*modules: nn.Module) -> int:
    """Bytes of what modules hold, shared ones once."""
    slots = [slot for module in modules for slot in (*module.parameters(), *module.buffers())]
    return sum({(s := slot.untyped_storage()).data_ptr(): s.nbytes() for slot in slots}.values())


@dataclass(frozen=True, slots=True)
class Told:
    """Two pictures in turn by both models.

    Args:
        made: the latents that each model has left, and the picture, twice.
        base, refiner, first_stage: bytes of weights.
        resting: in the second model's turn, what is on the card beside its own weights and the first stage.
        base_resting: the same in the first model's next turn.
        working: the most that a turn took beside what was there before it.
        peak: of all.
    """

    made: list[Tensor]
    base: int
    refiner: int
    first_stage: int
    resting: int
    base_resting: int
    working: int
    peak: int


def two_pictures(card: Card, loads: tuple[Load, Load], residence: Residence) -> Told:
    models, made, held, peaks, working = TwoModels(*loads, residence), list[Tensor](), list[int](), [0], 0
    sizes = [0, 0, 0]
    card.reset()
    for _ in range(2):
        noise = picture_noise(models.base(), [PLAN])
        left: Tensor | None = None
        for turn in range(2):
            engine = models.refiner() if turn else models.base()
            sizes[turn], sizes[2] = weights(engine.network, engine.conditioner), weights(engine.first_stage)
            held.append(card.now - sizes[turn] - sizes[2] - (0 if left is None else left.nbytes))
            peaks.append(card.peak)
            card.reset()
            before = card.now
            *_, last = sample(engine, [PLAN], noise) if left is None else refine(engine, [PLAN], left, noise)
            left = last.x
            made.append(left.cpu())
            if turn:
                made.append(torch.from_numpy(decode(engine, left)[0]))
            peaks.append(card.peak)
            working = max(working, card.peak - before)
            del engine, last
    del models, left
    assert card.now == 0  # without a collector: it comes when it comes
    return Told(made, *sizes, held[1], held[2], working, max(peaks))


@pytest.fixture(scope="module")
def ways(card: Card, folder: Path) -> dict[str, Told]:
    on_card = loads(folder, torch.device(NAME, 0))
    names: tuple[Residence, ...] = ("keep", "offload", "reload")
    return {name: two_pictures(card, on_card, name) for name in names}


def test_every_way_gives_the_pictures_of_the_cpu_bit_for_bit(card: Card, folder: Path, ways: dict[str, Told]) -> None:
    exact = two_pictures(card, loads(folder, torch.device("cpu")), "keep")
    assert exact.peak == 0
    for told in ways.values():
        assert len(told.made) == len(exact.made) == 6
        assert all(map(torch.equal, told.made, exact.made))


def test_nothing_of_the_resting_model_is_on_the_card(ways: dict[str, Told]) -> None:
    keep, offload, reload = (ways[name] for name in ("keep", "offload", "reload"))
    assert offload.resting == reload.resting == reload.base_resting == 0
    said = keep.resting - keep.base  # what the base's towers have said, which it goes on with
    assert 0 < said < 2**15
    assert offload.base_resting == said


def test_the_peak_is_the_larger_model_and_its_work_or_the_sum(ways: dict[str, Told]) -> None:
    keep = ways["keep"]
    assert keep.peak >= keep.base + keep.refiner + keep.first_stage
    for name in ("offload", "reload"):
        told = ways[name]
        # What is read on its way to the weights comes before the work.
        assert told.peak <= max(told.base, told.refiner) + told.first_stage + max(told.working, CHUNK_BYTES) + 2**15
        assert told.peak < keep.peak - min(told.base, told.refiner) + CHUNK_BYTES


@pytest.mark.parametrize("recorded", [False, True], ids=["called", "recorded"])
@torch.inference_mode()
def test_a_network_with_every_layer_for_a_gpu_leaves_the_card_and_comes_back_as_it_was(
    card: Card, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of one matrix, biases of several layers, what was made of a text that is still held, and recordings."""
    plain = randomized(UNet(BASE)).requires_grad_(False)
    network = copy.deepcopy(plain).to(NAME, memory_format=torch.channels_last)
    blocks = [module for module in network.modules() if isinstance(module, TransformerBlock)]
    for block in blocks:
        block.attn1 = FusedSelfAttention(block.attn1)  # type: ignore[assignment]
    join_text([block.attn2 for block in blocks])
    replace_layers(network, lambda layer: PhaseUpsample(layer) if isinstance(layer, Upsample) else None)
    kernels = NetworkKernels(group_norm, add, interleave, layer_norm, gated, added_in_place, join)
    fuse_norms(network, kernels)
    monkeypatch.setattr(winograd_blocks, "PAYING_CHANNELS", 64)
    sum_convolutions(network, WinogradKernels(normed_sums, outputs, doubling_sums, doubled))
    fuse_transformers(network, kernels)
    assert {SummedConv, SummedDoubling, nn.Conv2d} <= {type(layer) for layer in network.modules()}
    network = Graphed(network, Tape) if recorded else network  # which holds texts of its own, and lets go of them
    shapes = (2, BASE.in_channels, 8, 8), (2,), (2, 7, BASE.context_dim), (2, BASE.adm_in_channels)
    given = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    x, t, crossattn, vector = (part.to(NAME) for part in given)
    held, whole = sum(part.nbytes for part in given), card.now
    owned = {slot.data_ptr() for slot in network.parameters()}
    # Only in float32 a bias is the one that a layer adds in float32.
    twice = sum(slot.nbytes for slot in network.buffers() if slot.data_ptr() in owned)
    before = network(x, t, crossattn, vector)
    assert torch.equal(network(x, t, crossattn, vector), before)
    assert not recorded or len(network.recorded) == 1
    assert torch.allclose(before.cpu(), plain(*given), atol=1e-4)
    for _ in range(2):
        network.to("cpu")
        assert card.now == held + before.nbytes
        assert {part.device.type for part in (*network.parameters(), *network.buffers())} == {"cpu"}
        network.to(NAME)
        assert card.now == whole + twice + before.nbytes
        for _ in range(2):  # launched, then recorded
            assert torch.equal(network(x, t, crossattn, vector), before)


def test_a_card_that_is_too_small_for_both_is_left_by_the_one_at_rest() -> None:
    device, free = torch.device(NAME), free_memory_bytes(torch.device("cpu"))
    assert free is not None
    assert choose_residence(1000, 1000, device) == "keep"
    assert choose_residence(int(free / 1.05), 0, device) == "offload"
    assert choose_residence(2 * free, 0, device) == "reload"


def wide(folder: Path, weight: Tensor) -> TwoModels:
    """Models on the CPU, the network of the first of which is one tensor."""
    first, second = loads(folder, torch.device("cpu"))

    def base(first_stage: AutoencoderKL | None) -> Engine:
        network = nn.Module()
        network.register_buffer("weight", weight)
        return replace(first(first_stage), network=network)

    return TwoModels(base, second, "offload")


def test_what_does_not_fit_into_the_host_is_not_begun_to_rest_there(folder: Path) -> None:
    models = wide(folder, torch.empty(10**14, device="meta"))
    models.base()
    with pytest.raises(
        MemoryExhaustedError, match=r"weights of tiny-base while it rests: about 40000\d+\.. GB"
    ) as caught:
        models.refiner()
    assert "--memory reload" in (caught.value.hint or "")


def test_what_rests_in_the_host_already_needs_no_room_there_again(folder: Path) -> None:
    models = wide(folder, torch.zeros(1).expand(10**14))
    models.base()
    for _ in range(2):
        assert models.refiner().config.name == "tiny-refiner"
