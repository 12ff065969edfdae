"""What a training preset may say. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sdxl_core.config import Config, Finite, Positive

Fraction = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Config):
    """Which pictures of an image folder make a batch.

    buckets are (height, width); a picture goes to the one whose aspect is nearest to its own, is resized to
    cover it and cropped at random along what is left over. A batch is always of one bucket.
    """

    buckets: tuple[tuple[Positive, Positive], ...]
    batch_size: Positive


class OptimizerConfig(Config):
    """Optimizer, with a linear warm-up and then a constant or cosine learning rate.

    muon steps the hidden matrices by `sdxl_core.training.optimizers.Muon` and all other weights by AdamW.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_fraction: Fraction = 0.0  # of the learning rate, at the end of the cosine
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)  # AdamW's
    momentum: Fraction = 0.95  # Muon's
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0


class AutoencoderLossConfig(Config):
    """Reconstruction in pixels plus a small pull of the latent towards a unit normal."""

    kind: Literal["autoencoder"]
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: Annotated[float, Field(ge=0)] = 1e-6  # a latent value, averaged; reconstruction is a mean too
    standardize_over: Positive = 1000  # at most so many pictures' latents set mean and deviation in the model file


class ContrastiveLossConfig(Config):
    """Teaches the text towers by matching captions with pictures inside a batch, as CLIP was taught."""

    kind: Literal["contrastive"]
    image_size: Positive = 64  # pictures are shrunk to that many pixels a side for the image tower
    image_channels: Positive = 32  # of the image tower's first layer


class DiffusionLossConfig(Config):
    """Denoising loss of the network; see `sdxl_core.diffusion.losses`."""

    kind: Literal["diffusion"]
    distance: Literal["l2", "l1"] = "l2"
    offset_noise: Annotated[float, Field(ge=0)] = 0.0
    sigma_sampling: Literal["discrete", "edm"] = "discrete"
    index_range: tuple[Annotated[int, Field(ge=0)], Positive] | None = None  # discrete only, [first, last)
    p_mean: Finite = -1.2  # edm only
    p_std: Annotated[float, Field(gt=0)] = 1.2  # edm only
    weighting: Literal["unit", "eps", "v", "edm", "flow", "min_snr"] = "eps"
    min_snr_gamma: Annotated[float, Field(gt=0)] = 5.0  # min_snr only
    caption_dropout: Fraction = 0.1  # share of pictures trained without any text, for guidance


LossConfig = Annotated[AutoencoderLossConfig | ContrastiveLossConfig | DiffusionLossConfig, Field(discriminator="kind")]


class TrainConfig(Config):
    """One stage of training: which part of `model` learns, from what, and for how long."""

    name: str
    description: str = ""
    model: str  # name of the model preset
    steps: Positive
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights stay float32
    compile: bool = False
    ema_decay: Fraction = 0.9999
    save_every: Positive = 500
    log_every: Positive = 10
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    metadata: dict[str, str] = Field(default_factory=dict)  # written into the model file

    @model_validator(mode="after")
    def _warmup_fits(self) -> "TrainConfig":
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be less than steps {self.steps}"
            )
        return self
