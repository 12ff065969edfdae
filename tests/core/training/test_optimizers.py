import pytest
import torch
from torch import nn

from sdxl_core.training.config import OptimizerConfig
from sdxl_core.training.optimizers import Muon, build_optimizers, is_hidden_matrix, orthogonalised


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 16, 90), (2, 64, 20)])
def test_an_orthogonalised_matrix_keeps_its_directions_and_evens_out_its_singular_values(
    shape: tuple[int, ...],
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalised(matrices)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6  # the coefficients' own range, see the source
    assert values.max() < 1.3
    # The polynomial is odd, so u and v of the decomposition stay: u^T out v is diagonal.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ out @ vh.mT
    off = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 0.05


def test_a_step_is_as_long_as_one_of_adamw_and_decays_as_it_does() -> None:
    weight = nn.Parameter(torch.ones(32, 128))
    weight.grad = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    moved = weight.detach() - 0.95
    # AdamW's steps have a root mean square of 0.2 to 0.4 times the rate; Muon's is set to 0.2.
    assert moved.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)


def test_every_weight_has_one_optimizer_and_the_ends_of_a_network_are_adamws() -> None:
    network = nn.ModuleDict(
        {
            "first": nn.Conv2d(4, 32, 3),
            "norm": nn.GroupNorm(4, 32),
            "hidden": nn.Conv2d(32, 32, 3),
            "last": nn.Linear(32, 4),
        }
    )
    weights = dict(network.named_parameters())
    assert {name for name, weight in weights.items() if is_hidden_matrix(weight)} == {"first.weight", "hidden.weight"}
    both = build_optimizers(weights, OptimizerConfig(learning_rate=1e-3, kind="muon"))
    owned = [id(w) for optimizer in both for group in optimizer.param_groups for w in group["params"]]
    assert sorted(owned) == sorted(id(w) for w in weights.values())
    assert [type(optimizer).__name__ for optimizer in both] == ["Muon", "AdamW"]
    (alone,) = build_optimizers(weights, OptimizerConfig(learning_rate=1e-3))
    assert type(alone).__name__ == "AdamW"


def test_muon_learns_a_linear_map() -> None:
    g = torch.Generator().manual_seed(0)
    truth, weight = torch.randn(16, 16, generator=g), nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([weight], lr=0.2, momentum=0.9, weight_decay=0.0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        x = torch.randn(64, 16, generator=g)
        loss = (x @ (weight - truth).T).square().mean()
        weight.grad = None
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * 16
