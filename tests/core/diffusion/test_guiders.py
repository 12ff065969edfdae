import pytest
import torch
from torch import Tensor

from sdxl_core.config import DenoiserConfig, GuiderConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.guiders import Identity, VanillaCFG, build_guider
from sdxl_core.errors import UsageError
from sdxl_core.types import Conditioning

DENOISER = Denoiser(DenoiserConfig())


class PromptNetwork:
    """A network whose answer depends on every part of the conditioning, row by row; keeps the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        self.batches.append(x_in.shape[0])
        told = cond.crossattn.mean(dim=(1, 2)) + 2 * cond.vector.mean(dim=1) + c_noise / 1000
        return torch.tanh(x_in[:, :4] + told[:, None, None, None])


def conditioning(seed: int, tokens: int = 77) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(2, tokens, 8, generator=generator), torch.randn(2, 6, generator=generator)
    )  # fmt: skip


COND, UNCOND = conditioning(0), conditioning(1)
X = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2)) * 5


def alone(cond: Conditioning) -> Tensor:
    return DENOISER(PromptNetwork(), X, 5.0, cond)


@pytest.mark.parametrize("scale", [-2.0, 0.0, 0.5, 5.0, 7.5])
def test_guidance_is_two_single_predictions_put_together(scale: float) -> None:
    network = PromptNetwork()
    prediction = VanillaCFG(scale).bind(DENOISER, network, COND, UNCOND)(X, 5.0)
    u, c = alone(UNCOND), alone(COND)
    torch.testing.assert_close(prediction.denoised, u + scale * (c - u), rtol=1e-6, atol=1e-6)
    assert prediction.uncond is not None
    torch.testing.assert_close(prediction.uncond, u, rtol=1e-6, atol=1e-6)
    assert network.batches == [4]


def test_scale_zero_is_the_unconditional_prediction() -> None:
    prediction = VanillaCFG(0.0).bind(DENOISER, PromptNetwork(), COND, UNCOND)(X, 5.0)
    torch.testing.assert_close(prediction.denoised, alone(UNCOND), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guider", [VanillaCFG(1.0), Identity()])
@pytest.mark.parametrize("uncond", [UNCOND, None])
def test_no_guidance_runs_the_prompt_alone(guider: VanillaCFG | Identity, uncond: Conditioning | None) -> None:
    network = PromptNetwork()
    prediction = guider.bind(DENOISER, network, COND, uncond)(X, 5.0)
    assert torch.equal(prediction.denoised, alone(COND))
    assert prediction.uncond is None
    assert network.batches == [2]


def test_uncond_rows_come_first() -> None:
    seen = []

    def network(x_in: Tensor, c_noise: Tensor, cond: Conditioning) -> Tensor:
        seen.append(cond)
        return x_in

    VanillaCFG(5.0).bind(DENOISER, network, COND, UNCOND)(X, 5.0)
    assert torch.equal(seen[0].crossattn, torch.cat([UNCOND.crossattn, COND.crossattn]))
    assert torch.equal(seen[0].vector, torch.cat([UNCOND.vector, COND.vector]))


def test_prompts_of_different_length_are_refused() -> None:
    with pytest.raises(UsageError, match="77 tokens and the negative prompt 154"):
        VanillaCFG(5.0).bind(DENOISER, PromptNetwork(), COND, conditioning(1, tokens=154))


def test_a_concat_condition_on_one_side_only_is_refused() -> None:
    with_picture = Conditioning(COND.crossattn, COND.vector, torch.zeros(2, 1, 3, 5))
    with pytest.raises(UsageError, match="picture condition"):
        VanillaCFG(5.0).bind(DENOISER, PromptNetwork(), with_picture, UNCOND)


def test_guidance_without_an_unconditional_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale 5\.0 needs an unconditional"):
        VanillaCFG(5.0).bind(DENOISER, PromptNetwork(), COND, None)


def test_recipes_name_their_guider() -> None:
    assert build_guider(GuiderConfig(name="identity")) == Identity()
    assert build_guider(GuiderConfig(scale=6.5)) == VanillaCFG(6.5)
