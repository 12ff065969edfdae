"""The first stage both ways: a latent to a picture of bytes, a picture to its latent.

PYTHONPATH=. python benchmarks/first_stage.py [--preset sdxl-base-1.0 --model FILE --size 512x512]
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from bench.command import Benchmark, device_of, model_of, options, run
from bench.figures import Facts, Load
from bench.models import Model, our_engine, their_facts, their_parts
from bench.turns import Contender, Run

from sdxl_core.first_stage import decode_latents, encode_images
from sdxl_core.flops import decoder_work, encoder_work

if TYPE_CHECKING:
    from bench.machine import Clock


@dataclass(frozen=True, slots=True)
class FirstStage:
    """One picture, or its latent; a picture counts when it is bytes in the host's memory."""

    model: Model
    device: str
    way: Literal["decode", "encode"]

    def work(self) -> Mapping[str, Load]:
        count = decoder_work if self.way == "decode" else encoder_work
        return {"first stage": Load(count(self.model.config.first_stage, self.model.size).total)}

    def prepare(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        return self._ours(contender, clock) if contender.ours else self._theirs(contender, clock)

    def _ours(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        engine, facts = our_engine(self.model, contender, self.device, "first stage")
        first_stage = engine.first_stage

        def decode(seed: int) -> Any:
            latent = self._latent(seed)
            with clock:
                (picture,) = decode_latents(first_stage, latent)
            return picture / np.float32(127.5) - 1

        def encode(seed: int) -> Any:
            image = self._image(seed)
            with clock:
                latent = encode_images(first_stage, image)
            return latent.cpu().numpy()

        return facts, decode if self.way == "decode" else encode

    def _theirs(self, contender: Contender, clock: "Clock") -> tuple[Facts, Run]:
        parts = their_parts(self.model, contender.dtype, self.device, "first stage")
        vae: Any = parts["vae"]
        dtype, scale = vae.dtype, vae.config.scaling_factor
        from diffusers.image_processor import VaeImageProcessor

        processor = VaeImageProcessor(vae_scale_factor=self.model.config.first_stage.factor)
        if contender.name == "diffusers compiled":
            vae.decode, vae.encode = torch.compile(vae.decode), torch.compile(vae.encode)

        def decode(seed: int) -> Any:
            latent = self._latent(seed)
            with clock:
                image = vae.decode(latent.to(dtype) / scale, return_dict=False)[0]
                (picture,) = processor.postprocess(image, output_type="pil")
            return np.asarray(picture) / np.float32(127.5) - 1

        def encode(seed: int) -> Any:
            image = self._image(seed)
            with clock:
                latent = vae.encode(image.to(dtype)).latent_dist.mode() * scale
            return latent.float().cpu().numpy()

        return their_facts(parts), decode if self.way == "decode" else encode

    def _latent(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, *self.model.latent, generator=generator).to(self.device)

    def _image(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(1, 3, *self.model.size, generator=generator) * 2 - 1).to(self.device)


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    model, device = model_of(args), device_of(args)
    place = f"{model.preset} at {model.size[1]}x{model.size[0]}"
    end = f"{model.preset}-{device.split(':')[0]}"
    return [
        Benchmark(f"decode-{end}", f"Decoding a picture of {place}", FirstStage(model, device, "decode")),
        Benchmark(f"encode-{end}", f"Encoding a picture of {place}", FirstStage(model, device, "encode")),
    ]


def main() -> None:
    args = options(__doc__).parse_args()
    for benchmark in benchmarks(args):
        run(benchmark, args)


if __name__ == "__main__":
    main()
