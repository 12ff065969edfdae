"""How much each noise level counts in the loss on the clean latent, (D - x0)^2.

A prediction error of the raw network is the error of D divided by |c_out|, so a weight of 1 / c_out^2 here is a
weight of 1 there: `eps_weighting` is plain noise prediction, `v_weighting` plain v prediction (also that of edm_v).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Weighting = Callable[[Tensor], Tensor]
"""(b,) noise levels -> (b,) weights."""


def unit_weighting(sigma: Tensor) -> Tensor:
    """1 everywhere."""
    return torch.ones_like(sigma)


def eps_weighting(sigma: Tensor) -> Tensor:
    """1 / sigma^2: every level counts the same in the loss on the noise, as SDXL was trained."""
    return sigma**-2


def edm_weighting(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """(sigma^2 + s^2) / (sigma s)^2: every level counts the same in the EDM network's loss.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def v_weighting(sigma: Tensor) -> Tensor:
    """(sigma^2 + 1) / sigma^2: every level counts the same in the loss on v."""
    return edm_weighting(sigma, 1.0)


def flow_weighting(sigma: Tensor) -> Tensor:
    """((1 + sigma) / sigma)^2: every level counts the same in the loss on the flow, eps - x0.

    Source: `flow_scaling`; Liu et al. 2022, arXiv:2209.03003, equation 1.
    """
    return ((1 + sigma) / sigma) ** 2


def min_snr_weighting(sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """min(1 / sigma^2, gamma): low noise counts no more than gamma, whatever the network predicts.

    With x = x0 + sigma eps the signal-to-noise ratio is SNR = 1 / sigma^2. The paper weighs the loss on eps by
    min(SNR, gamma) / SNR and the loss on v by min(SNR, gamma) / (SNR + 1). An error e of x0 is an error e / sigma of
    eps and e sqrt(sigma^2 + 1) / sigma of v, so the squared losses are SNR e^2 and (SNR + 1) e^2: both weights are
    min(SNR, gamma) on e^2.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    return (sigma**-2).clamp(max=gamma)


WEIGHTINGS: Mapping[str, Weighting] = MappingProxyType(
    {
        "unit": unit_weighting,
        "eps": eps_weighting,
        "v": v_weighting,
        "edm": edm_weighting,
        "flow": flow_weighting,
        "min_snr": min_snr_weighting,
    }
)
