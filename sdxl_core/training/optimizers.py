"""The optimizers: AdamW, and Muon for the hidden matrices of a network with AdamW for the rest."""

import math
from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sdxl_core.training.config import OptimizerConfig

_QUINTIC = (3.4445, -4.7750, 2.0315)  # singular values in (0, 1] come near 1 within five rounds, though not to it
_ROUNDS = 5
_SMALLEST_SIDE = 16


def orthogonalised(matrices: Tensor) -> Tensor:
    """(b, m, n) matrices with every singular value that is not tiny made about 1 (0.7 to 1.2), in bfloat16 arithmetic.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", with its coefficients.
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return out


class Muon(Optimizer):
    """Momentum whose every step is an orthogonal matrix: all directions of a layer learn at one rate.

    A convolution counts as the matrix (c_out, c_in * k * k). The step has the root mean square of an AdamW step at the
    same learning rate, so that both may share one rate and one decay.

    Args:
        params: weights of at least two axes.
        lr: learning rate.
        momentum: decay of the average of the gradients; Nesterov's form.
        weight_decay: as in AdamW.

    Source: Jordan et al. 2024, as above; the size of a step: Liu et al. 2025, arXiv:2502.16982, section 2.2.
    """

    def __init__(self, params: list[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Any) -> float: ...
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:
        """One step; weights without a gradient stay as they are. No closure is called."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}  # one product for all of a shape
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - momentum)
                ahead = weight.grad.lerp(average, momentum).flatten(1)
                alike.setdefault((ahead.shape[0], ahead.shape[1]), []).append((weight, ahead))
            for (m, n), pairs in alike.items():
                steps = orthogonalised(torch.stack([ahead for _, ahead in pairs]))
                size = 0.2 * math.sqrt(max(m, n))
                for (weight, _), direction in zip(pairs, steps, strict=True):
                    weight.mul_(1 - lr * group["weight_decay"])
                    weight.sub_(direction.view_as(weight), alpha=lr * size)
        return None


def is_hidden_matrix(weight: Tensor) -> bool:
    """Whether Muon is for it: a matrix or convolution whose sides are not as thin as those at a network's ends."""
    return weight.dim() >= 2 and min(weight.shape[0], weight[0].numel()) >= _SMALLEST_SIDE


def build_optimizers(weights: Mapping[str, Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """The optimizers of a run; together they own every weight once."""
    hidden = [w for w in weights.values() if config.kind == "muon" and is_hidden_matrix(w)]
    own = {id(w) for w in hidden}
    rest = [w for w in weights.values() if id(w) not in own]
    rate, decay = config.learning_rate, config.weight_decay
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, lr=rate, momentum=config.momentum, weight_decay=decay))
    if rest:
        optimizers.append(AdamW(rest, lr=rate, betas=config.betas, weight_decay=decay, fused=True))
    return optimizers
