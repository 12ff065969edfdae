"""What a preset may say about guidance; `sdxl_core.diffusion.guiders` says in which order it acts. Imports no torch."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sdxl_core.errors import UsageError
from sdxl_core.strict import Config, Finite, PositiveNumber
from sdxl_core.unknown import suggestion

Stages = Annotated[tuple[str, ...], Field(min_length=1)]
"""Names of the UNet's stages: `middle_block`, `input_blocks.N`, `output_blocks.N`."""


class IntervalConfig(Config):
    """Where guidance is on; outside, the prompt runs alone.

    sigma: at noise levels in (low, high]. step: from step low to step high, the first is 1. percent: the same as
    shares of the steps, from the start.
    """

    unit: Literal["sigma", "percent", "step"] = "sigma"
    low: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    high: PositiveNumber

    @model_validator(mode="after")
    def _is_an_interval(self) -> "IntervalConfig":
        if self.low > self.high or (self.low == self.high and self.unit != "step"):
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.unit == "step" and (self.low < 1 or not (self.low.is_integer() and self.high.is_integer())):
            raise ValueError(f"steps are whole numbers from 1, got {self.low:g} and {self.high:g}")
        if self.unit == "percent" and self.high > 100:
            raise ValueError(f"high {self.high:g} is more than 100 percent")
        return self


class TcfgConfig(Config):
    """Tangential damping of the unconditional side. Source: arXiv:2503.18137."""


class CfgZeroStarConfig(Config):
    """CFG-Zero*: the unconditional side scaled to fit; x does not move in the first `zero_init` steps."""

    zero_init: Annotated[int, Field(ge=0)] = 0


class ApgConfig(Config):
    """Adaptive projected guidance; the defaults are the paper's for SDXL. Source: arXiv:2410.02416."""

    eta: Finite = 0.0  # weight of what is parallel to the conditional prediction
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 15.0  # longest update; 0: any
    momentum: Finite = -0.5


class FdgConfig(Config):
    """Frequency-decoupled guidance: `scale` of the guider for low frequencies. Source: arXiv:2506.19713."""

    high: Finite = 10.0  # scale of the high frequencies


class PerpNegConfig(Config):
    """The negative prompt without what it shares with the prompt. Source: arXiv:2304.04968."""

    weight: Finite = 1.0


class DynamicThresholdingConfig(Config):
    """The range of values that a milder scale would give."""

    mimic: Finite = 7.0  # the milder scale
    percentile: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the magnitudes, where the range ends
    measure: Literal["ad", "std"] = "ad"  # absolute deviation or standard deviation
    phi: Annotated[float, Field(ge=0, le=1)] = 1.0  # share in the result


class RescaleConfig(Config):
    """The spread of the conditional prediction, of eps or of v. Source: arXiv:2305.08891, section 3.4."""

    phi: Annotated[float, Field(ge=0, le=1)] = 0.7  # share in the result
    space: Literal["eps", "v"] = "eps"


class PagConfig(Config):
    """Perturbed-attention guidance. Source: arXiv:2403.17377."""

    scale: Finite = 3.0
    stages: Stages = ("middle_block",)


class SegConfig(Config):
    """Smoothed energy guidance. Source: arXiv:2408.00760."""

    scale: Finite = 3.0
    blur: PositiveNumber | None = None  # in cells of the map; None: infinite
    stages: Stages = ("middle_block",)


class SagConfig(Config):
    """Self-attention guidance. Source: arXiv:2210.00939."""

    scale: Finite = 0.5
    blur: PositiveNumber = 2.0  # in latent cells
    threshold: Finite = 1.0  # attention received, of which the mean is 1


class FreeUConfig(Config):
    """FreeU: b for features from below, s for skips; 1 for the lowest level, 2 for the next. Source: arXiv:2309.11497.

    The defaults are what its authors advise for SDXL.
    """

    version: Literal[1, 2] = 2
    b1: Finite = 1.3
    b2: Finite = 1.4
    s1: Finite = 0.9
    s2: Finite = 0.2


class GuiderConfig(Config):
    """Classifier-free guidance, uncond + scale (cond - uncond), and what is added to it; each table turns one on.

    In which order they act says `sdxl_core.diffusion.guiders`.
    """

    name: Literal["identity", "vanilla_cfg"] = "vanilla_cfg"
    scale: Finite = 5.0
    interval: IntervalConfig | None = None
    perp_neg: PerpNegConfig | None = None
    tcfg: TcfgConfig | None = None
    cfg_zero_star: CfgZeroStarConfig | None = None
    apg: ApgConfig | None = None
    fdg: FdgConfig | None = None
    dynamic_thresholding: DynamicThresholdingConfig | None = None
    pag: PagConfig | None = None
    seg: SegConfig | None = None
    sag: SagConfig | None = None
    rescale: RescaleConfig | None = None
    freeu: FreeUConfig | None = None

    @model_validator(mode="after")
    def _methods_have_guidance(self) -> "GuiderConfig":
        if self.name == "identity":
            for method in _OF_BOTH_SIDES:
                if getattr(self, method) is not None:
                    raise ValueError(f"{method} changes guidance, and identity has none")
        return self

    def methods(self) -> dict[str, Config]:
        """The methods that are on, by name, in the order in which they act; the interval is none of them."""
        values = {key: getattr(self, key) for key in GUIDANCE_METHODS}
        return {key: value for key, value in values.items() if value is not None}

    def check_stages(self, attended: Sequence[str]) -> None:
        """Refuse a stage that is not among those of the network that have attention.

        Raises:
            UsageError: names the nearest.
        """
        touched = {
            "pag": self.pag and self.pag.stages,
            "seg": self.seg and self.seg.stages,
            "sag": self.sag and ("middle_block",),
        }
        for name, stages in touched.items():
            for stage in stages or ():
                if stage not in attended:
                    raise UsageError(
                        f"{name}: {stage!r} is no stage of the network with attention{suggestion(stage, attended)}",
                        hint=f"these are: {', '.join(attended)}",
                    )

    def words(self) -> tuple[str, ...]:
        """What there is beside plain guidance, each in a word or two."""
        interval = self.interval
        where = () if interval is None else (f"{interval.unit} {interval.low:g}..{interval.high:g}",)
        return (*self.methods(), *where)

    def idle(self) -> tuple[str, ...]:
        """Methods that change guidance where a scale of 1 leaves none."""
        return () if self.runs_uncond() else tuple(name for name in self.methods() if name in _OF_BOTH_SIDES)

    def runs_uncond(self, keep_uncond: bool = False) -> bool:
        """Whether the unconditional side is run: where it has a say, or a CFG++ sampler wants it kept."""
        has_a_say = self.scale != 1 or self.fdg is not None or self.perp_neg is not None
        return self.name == "vanilla_cfg" and (has_a_say or keep_uncond)


_OF_BOTH_SIDES = ("perp_neg", "tcfg", "cfg_zero_star", "apg", "fdg", "dynamic_thresholding")
GUIDANCE_METHODS = tuple(key for key in GuiderConfig.model_fields if key not in ("name", "scale", "interval"))
