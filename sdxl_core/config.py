"""What a preset may say: frozen, strict, typed models in the vocabulary of the original configs.

This module imports no torch: presets are checked before anything heavy is loaded.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from sdxl_core.errors import PresetError
from sdxl_core.guider_config import GuiderConfig
from sdxl_core.strict import Config as Config
from sdxl_core.strict import Finite as Finite
from sdxl_core.strict import Positive as Positive
from sdxl_core.strict import PositiveNumber as PositiveNumber

Decoding = Literal["auto", "whole", "pieces", "tiles"]
"""How the first stage makes pictures of latents: whole; in pieces, which is the same in little memory; whichever of the
two fits (auto); or in tiles that are blended, which changes the picture."""

Encoding = Literal["mode", "sample"]
"""How the first stage, which tells the likely latents of a picture, settles on one."""

Score = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
"""An aesthetic score."""


class NetworkConfig(Config):
    """The UNet. Source: the published configs of the base and the refiner.

    attention_resolutions are downsampling factors; transformer_depth has one entry a level (an entry of a
    level without attention is not used; the middle block takes the last). A whole number stands for the
    same depth everywhere.
    """

    in_channels: Positive = 4
    out_channels: Positive = 4
    model_channels: Positive
    channel_mult: tuple[Positive, ...]
    num_res_blocks: Positive = 2
    attention_resolutions: tuple[Positive, ...]
    transformer_depth: tuple[Annotated[int, Field(ge=0)], ...]
    num_head_channels: Positive = 64
    use_linear_in_transformer: bool = True
    context_dim: Positive
    adm_in_channels: Positive

    def attended_stages(self) -> tuple[str, ...]:
        """Names of the UNet's stages that have attention, in the order in which they run."""
        last, stages = len(self.channel_mult) - 1, self.num_res_blocks + 1
        depths = enumerate(self.transformer_depth)
        attended = [level for level, depth in depths if depth and 2**level in self.attention_resolutions]
        down = [f"input_blocks.{1 + level * stages + i}" for level in attended for i in range(self.num_res_blocks)]
        up = [f"output_blocks.{(last - level) * stages + i}" for level in reversed(attended) for i in range(stages)]
        return (*down, *(["middle_block"] if self.transformer_depth[last] else []), *up)

    @model_validator(mode="after")
    def _levels_agree(self) -> "NetworkConfig":
        if len(self.transformer_depth) != len(self.channel_mult):
            raise ValueError(
                f"transformer_depth has {len(self.transformer_depth)} entries, channel_mult {len(self.channel_mult)}"
            )
        last = len(self.channel_mult) - 1
        for level, (mult, depth) in enumerate(zip(self.channel_mult, self.transformer_depth, strict=True)):
            attended = depth > 0 and (2**level in self.attention_resolutions or level == last)
            if attended and mult * self.model_channels % self.num_head_channels:
                raise ValueError(
                    f"num_head_channels {self.num_head_channels} does not divide the "
                    f"{mult * self.model_channels} channels of level {level}"
                )
        return self


class FirstStageConfig(Config):
    """The KL autoencoder; latent = scale_factor x encoding.

    A model whose file gives the mean and deviation of its encodings, one number a channel, works on
    latent = scale_factor x (encoding - latent_mean) / latent_std.
    """

    ch: Positive = 128
    ch_mult: tuple[Positive, ...] = (1, 2, 4, 4)
    num_res_blocks: Positive = 2
    z_channels: Positive = 4
    in_channels: Positive = 3
    out_ch: Positive = 3
    norm_groups: Positive = 32
    scale_factor: Finite = 0.13025
    latent_mean: tuple[Finite, ...] | None = None
    latent_std: tuple[PositiveNumber, ...] | None = None

    @model_validator(mode="after")
    def _statistics_fit(self) -> "FirstStageConfig":
        counts = {len(numbers) for numbers in (self.latent_mean, self.latent_std) if numbers is not None}
        if counts - {self.z_channels} or (self.latent_mean is None) != (self.latent_std is None):
            raise ValueError(f"latent_mean and latent_std come together, {self.z_channels} numbers each")
        return self

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return int(2 ** (len(self.ch_mult) - 1))


PredictionName = Literal["eps", "v", "v_ztsnr", "v_ztsnr_diffusers", "edm", "edm_v", "flow"]
"""Names of what networks predict; see `sdxl_core.prediction`."""

ProgramName = Literal["a1111", "comfy", "diffusers", "sgm"]
"""Programs whose conventions a recipe can take; see `sdxl_core.compat`."""


class DenoiserConfig(Config):
    """What the network predicts, and the noise levels it was trained on.

    scaling: the network predicts
        eps: the noise; v: the velocity, both on a table of levels made of betas, and is told a level's index.
        edm: as in the paper; edm_v: v with sigma_data 1; both on every level of a range, and is told ln(sigma) / 4.
        flow: noise - clean latent, on straight lines between the two, and is told 1000 x the share of noise.
    zero_terminal_snr: v only: shift and stretch the table until its last level is pure noise but for what that program
        leaves, sigma 4518.76 or 4096.
    sigma_min, sigma_max: edm and edm_v only, the trained range; None for that of the published model of the kind.
    shift: flow only: every level times this number, for models trained at a larger size than their schedule.
    """

    scaling: Literal["eps", "v", "edm", "edm_v", "flow"] = "eps"
    num_idx: Positive = 1000
    linear_start: Finite = 0.00085
    linear_end: Finite = 0.0120
    zero_terminal_snr: Literal["comfy", "diffusers"] | None = None
    sigma_data: Finite = 0.5  # edm only
    sigma_min: PositiveNumber | None = None
    sigma_max: PositiveNumber | None = None
    shift: PositiveNumber = 1.0

    @model_validator(mode="after")
    def _belongs_to_the_scaling(self) -> "DenoiserConfig":
        if self.zero_terminal_snr is not None and self.scaling != "v":
            raise ValueError(f"zero_terminal_snr needs a network that predicts v, not {self.scaling}")
        if self.shift != 1.0 and self.scaling != "flow":
            raise ValueError(f"shift needs a network that predicts flow, not {self.scaling}")
        if (self.sigma_min or self.sigma_max) and self.scaling not in ("edm", "edm_v"):
            raise ValueError(f"sigma_min and sigma_max need a network that predicts edm or edm_v, not {self.scaling}")
        return self


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")


class ClipTextConfig(Config):
    """A CLIP text tower in the Hugging Face layout (ViT-L/14 of the base)."""

    kind: Literal["clip"]
    input_key: Literal["txt"] = "txt"
    width: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    layer_idx: Positive = 11  # hidden state after that many layers, without the final norm
    ucg_rate: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _layers_and_heads_fit(self) -> "ClipTextConfig":
        _check_heads(self.width, self.heads)
        if self.layer_idx > self.layers:
            raise ValueError(f"layer_idx {self.layer_idx} is beyond the last of {self.layers} layers")
        return self


class OpenClipTextConfig(Config):
    """A CLIP text tower in the open_clip layout (ViT-bigG-14); gives crossattn and the pooled vector."""

    kind: Literal["open_clip"]
    input_key: Literal["txt"] = "txt"
    width: Positive = 1280
    layers: Positive = 32
    heads: Positive = 20
    ucg_rate: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _heads_divide(self) -> "OpenClipTextConfig":
        _check_heads(self.width, self.heads)
        return self


class SizeEmbedderConfig(Config):
    """Every number of `input_key` through a sinusoid of `outdim` features, concatenated."""

    kind: Literal["concat_timestep_nd"]
    input_key: Literal["original_size", "crop_coords_top_left", "target_size", "aesthetic_score"]
    outdim: Positive = 256
    ucg_rate: Annotated[float, Field(ge=0, le=1)] = 0.0


EmbedderConfig = Annotated[ClipTextConfig | OpenClipTextConfig | SizeEmbedderConfig, Field(discriminator="kind")]


class ConditionerConfig(Config):
    """Embedders in the order of the checkpoint: `conditioner.embedders.N` holds the weights of the Nth."""

    embedders: tuple[EmbedderConfig, ...]

    def towers(self) -> dict[int, ClipTextConfig | OpenClipTextConfig]:
        """The text towers by their position among the embedders."""
        return {i: e for i, e in enumerate(self.embedders) if not isinstance(e, SizeEmbedderConfig)}


class ModelFile(Config):
    """One published file: where it lies on the hub, and what it must be."""

    name: str
    repo: str | None = None
    bytes: int | None = None
    sha256: str | None = None


class ModelConfig(Config):
    """What the weights are.

    parts_from: name of the model whose file holds the text towers and the first stage, where this one's file is the
    network alone; as the published refiner's bigG and first stage are the base's.
    kind: `inpaint` is a base whose network is shown a mask and the masked picture, `edit` one that is shown a picture.
    scale_shown: whether an editing model was trained with the picture's latent scaled as the noisy one is.
    lowest_levels: how many of the lowest levels of its table a specialist was trained on, as refiners are; None: all.
    """

    name: str
    description: str = ""
    licence: str = ""
    kind: Literal["base", "refiner", "inpaint", "edit"]
    native_size: tuple[Positive, Positive] = (1024, 1024)  # height, width
    file: ModelFile
    parts_from: str | None = None
    network: NetworkConfig
    denoiser: DenoiserConfig = DenoiserConfig()
    conditioner: ConditionerConfig
    first_stage: FirstStageConfig = FirstStageConfig()
    scale_shown: bool = False
    lowest_levels: Positive | None = None

    @model_validator(mode="after")
    def _channels_agree(self) -> "ModelConfig":
        shown = {"inpaint": self.first_stage.z_channels + 1, "edit": self.first_stage.z_channels}.get(self.kind, 0)
        if self.network.in_channels != (wanted := self.first_stage.z_channels + shown):
            raise ValueError(
                f"the network of a model of kind {self.kind} takes {wanted} channels, "
                f"network.in_channels is {self.network.in_channels}"
            )
        return self

    @property
    def file_kind(self) -> str:
        """What its own file is, in the words of `checkpoints.detect`."""
        return "unet_only" if self.parts_from else self.kind

    @model_validator(mode="after")
    def _widths_agree(self) -> "ModelConfig":
        crossattn = sum(tower.width for tower in self.conditioner.towers().values())
        if crossattn != self.network.context_dim:
            raise ValueError(
                f"the text towers give {crossattn} features, network.context_dim is {self.network.context_dim}"
            )
        numbers = {"aesthetic_score": 1}
        vector = sum(
            e.outdim * numbers.get(e.input_key, 2)
            if isinstance(e, SizeEmbedderConfig)
            else (e.width if isinstance(e, OpenClipTextConfig) else 0)
            for e in self.conditioner.embedders
        )
        if vector != self.network.adm_in_channels:
            raise ValueError(
                f"the embedders give a vector of {vector}, network.adm_in_channels is {self.network.adm_in_channels}"
            )
        return self


def borrowed_towers(model: ModelConfig, owner: ModelConfig) -> dict[int, int]:
    """Where the towers of a model lie in the file of the one that it takes its parts from: position -> position there.

    Raises:
        PresetError: the owner has no such tower, or another first stage.
    """
    theirs = owner.conditioner.towers()
    found = {}
    for position, tower in model.conditioner.towers().items():
        same = [i for i, other in theirs.items() if other.model_copy(update={"ucg_rate": tower.ucg_rate}) == tower]
        if not same:
            raise PresetError(
                f"{model.name} takes its parts from {owner.name}, which has no {tower.kind} tower like its own"
            )
        found[position] = same[0]
    if model.first_stage != owner.first_stage:
        raise PresetError(f"{model.name} takes its parts from {owner.name}, which has another first stage")
    return found


class ChoiceConfig(Config):
    """A row of a table and, beside its name, the options that are set; the table says which ones it takes."""

    model_config = ConfigDict(extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _none_is_not_set(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        # JSON has lists where a plan had tuples.
        return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if v is not None}

    @model_validator(mode="after")
    def _numbers_are_finite(self) -> Self:
        for option, value in self.options().items():
            if isinstance(value, float) and not math.isfinite(value):  # JSON has no word for it
                raise ValueError(f"{option} must be finite, not {value}; left out, it keeps its default")
        return self

    def options(self) -> dict[str, Any]:
        """The options that are set, as keyword arguments of the row's function."""
        return dict(self.model_extra or {})


class SamplerConfig(ChoiceConfig):
    """A sampler of `sdxl_core.diffusion.samplers`."""

    name: str = "euler"


class DiscretizationConfig(ChoiceConfig):
    """The noise levels that sampling walks through: a schedule of `sdxl_core.diffusion.schedules`."""

    name: str = "legacy_ddpm"


class MaskConfig(Config):
    """What is made of a mask; widths are in pixels of the picture that the mask lies on.

    only: work on the masked part alone, at the full size, and put it back into the picture.
    """

    invert: bool = False
    grow: Annotated[int, Field(ge=0, le=1024)] = 0  # outwards
    blur: Annotated[int, Field(ge=0, le=256)] = 4  # inside the edge, over which old and new are mixed
    only: bool = False
    padding: Annotated[int, Field(ge=0, le=4096)] = 32  # of the picture, around the masked part


class SourceConfig(Config):
    """How a picture is taken to start from; nothing of it counts where none is given.

    strength: the share of the steps that is walked, from the end: 1 is a picture from noise alone.
    encoding: which latent of a picture is taken: the most likely one, or one drawn by the picture's own generator,
        before the noise that it starts with.
    """

    strength: Annotated[float, Field(gt=0, le=1)] | None = None  # None: 0.6; 1 with a mask or an editing model
    steps_exact: bool = False  # walk `steps` steps, of a schedule that is longer by as much
    resize: Literal["crop", "pad", "stretch"] = "crop"
    encoding: Encoding = "mode"
    background: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")] = "#ffffff"  # shows through what is transparent
    image_guidance: Finite = 1.5  # editing models only
    mask: MaskConfig = MaskConfig()


class RefinerConfig(Config):
    """A second model that finishes the picture.

    use: whether it does; the rest may be there without.
    preset: of the second model; None: there is none.
    mode: how the first hands over, see `sdxl_core.diffusion.handover`.
    """

    use: bool = False
    preset: str | None = None
    mode: str = "share@0.8"


class RecipeConfig(Config):
    """How to run a model; every field of the command line that shapes the picture."""

    negative: str = ""
    prediction: PredictionName | None = None  # None: what the model file says, else what the model preset says
    shift: PositiveNumber | None = None  # flow only; None: the model's own
    compat: ProgramName | None = None  # None: this program's own conventions
    steps: Positive = 30
    size: tuple[Positive, Positive] | None = None  # height, width; None: the model's native size
    sampler: SamplerConfig = SamplerConfig()
    discretization: DiscretizationConfig = DiscretizationConfig()
    guider: GuiderConfig = GuiderConfig()
    refiner: RefinerConfig = RefinerConfig()
    original_size: tuple[Positive, Positive] | None = None  # None: the picture's own
    crop_coords_top_left: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    target_size: tuple[Positive, Positive] | None = None  # None: the picture's own
    aesthetic_score: Score = 6.0  # refiner only
    negative_aesthetic_score: Score = 2.5  # refiner only
    source: SourceConfig = SourceConfig()
    decoding: Decoding = "auto"
