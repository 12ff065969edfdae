import math

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from sdxl_core.diffusion.noise import PictureNoise

SHAPE = (4, 16, 24)


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("shape", [SHAPE, (4, 1, 1), (4, 3, 5)])
def test_first_draw_is_what_diffusers_draws_on_the_cpu(seed: int, shape: tuple[int, int, int]) -> None:
    draw = PictureNoise([seed], shape)()
    assert torch.equal(draw, randn_tensor((1, *shape), generator=torch.Generator().manual_seed(seed)))
    assert draw.dtype == torch.float32


def test_a_batch_is_what_diffusers_draws_for_a_list_of_generators() -> None:
    seeds = [3, 4, 5]
    noise = PictureNoise(seeds, SHAPE)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    for _ in range(3):
        assert torch.equal(noise(), randn_tensor((3, *SHAPE), generator=generators))


def test_every_draw_of_a_picture_is_the_same_alone_and_in_a_batch() -> None:
    together, alone = PictureNoise([7, 8], SHAPE), PictureNoise([8], SHAPE)
    for _ in range(3):
        assert torch.equal(together()[1:], alone())


def test_draws_differ_from_each_other_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    noise = PictureNoise([0, 1], SHAPE)
    first, second = noise(), noise()
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.get_rng_state())


def test_start_is_the_first_draw_scaled_for_the_highest_level() -> None:
    sigma = 14.614641189575195
    start = PictureNoise([11], SHAPE).start(sigma)
    torch.testing.assert_close(start, PictureNoise([11], SHAPE)() * math.sqrt(1 + sigma**2))


@pytest.mark.gpu
def test_draws_on_the_gpu_are_those_of_the_cpu() -> None:
    assert torch.equal(PictureNoise([5], SHAPE, "cuda")().cpu(), PictureNoise([5], SHAPE)())
