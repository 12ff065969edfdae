from pathlib import Path

import torch
from support_networks import randomized
from support_training import write_image_folder

from sdxl_core.config import FirstStageConfig
from sdxl_core.models.autoencoder import AutoencoderKL
from sdxl_core.training.autoencoder import standardize_latents
from sdxl_core.training.data import BucketedDraw, load_crop, read_image_folder


def test_standardized_latents_have_mean_0_and_deviation_1_and_decode_to_the_same(tmp_path: Path) -> None:
    config = FirstStageConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4, scale_factor=0.7)
    model = randomized(AutoencoderKL(config)).double()
    pictures = read_image_folder(write_image_folder(tmp_path))
    draw = BucketedDraw([p.size for p in pictures], [(64, 64)], 4)
    crops = [load_crop(p, (64, 64), torch.Generator().manual_seed(0)).image for p in pictures]
    images, noise = torch.stack(crops).double(), torch.randn(16, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model.decode(model.encode(images, noise))
        model.float()
        standardize_latents(model, pictures, draw, torch.device("cpu"))
        model.double()
        latents = model.encode(images)
        after = model.decode(model.encode(images, noise))
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4, dtype=torch.float64), atol=1e-3)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
