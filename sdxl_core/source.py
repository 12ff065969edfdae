"""What a plan says about the picture that it starts from, and what strength means. Imports no torch."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sdxl_core.config import Config, ModelConfig, Positive, SourceConfig
from sdxl_core.diffusion.levels import steps_of_whole
from sdxl_core.errors import UsageError
from sdxl_core.resolutions import LARGEST_SIDE

_SAME_SHAPE = 0.02  # in ln(width / height): what rounding does to a mask of another size

Margin = Annotated[int, Field(ge=0, le=16384)]
Margins = tuple[Margin, Margin, Margin, Margin]
"""(left, top, right, bottom) in pixels."""


class SourceFile(Config):
    """A picture or a mask as a record names it: its file name, hash, and (height, width) once it stands upright."""

    name: str
    sha256: str
    size: tuple[Positive, Positive]


class Source(Config):
    """The picture that a plan starts from.

    Args:
        picture: which file.
        latent: whether the file holds the latent itself, as --save-latents writes it; `picture.size` is what it decodes
            to.
        mask: of what is to be repainted, where there is one.
        margins: what is added around the picture, and painted.
        condition: how the network sees the picture beside its noisy latent: not at all, as the part that stays (an
            inpainting model), or as the whole to be edited.
        how: all that a recipe can say; `strength` is always given here.
    """

    picture: SourceFile
    latent: bool = False
    mask: SourceFile | None = None
    margins: Margins = (0, 0, 0, 0)
    condition: Literal["none", "inpaint", "edit"] = "none"
    how: SourceConfig

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.how.strength is None:
            raise ValueError("how.strength is missing")
        return self

    @property
    def strength(self) -> float:
        """Above 0, up to 1."""
        assert self.how.strength is not None
        return self.how.strength

    @property
    def repaints_a_part(self) -> bool:
        """Whether a mask or margins say what is to be painted."""
        return self.mask is not None or any(self.margins)

    @property
    def is_encoded_whole(self) -> bool:
        """Whether anything depends on the picture's latent: it is noised, kept in part, or shown as it is."""
        kept = self.repaints_a_part and self.condition == "none"
        return self.strength < 1 or kept or self.condition == "edit"

    @property
    def canvas_size(self) -> tuple[int, int]:
        """(height, width) of the picture with its margins."""
        left, top, right, bottom = self.margins
        return self.picture.size[0] + top + bottom, self.picture.size[1] + left + right

    def shared(self) -> tuple[SourceConfig, str, bool, bool]:
        """All that must be equal for two pictures to be drawn in one batch."""
        return self.how, self.condition, self.repaints_a_part, self.latent

    def schedule_steps(self, steps: int, *, exact: bool = False) -> int:
        """Steps of the whole schedule, of whose end `steps` are walked exactly, or the share `strength` of them.

        Args:
            steps: of the plan.
            exact: whether they are walked exactly though `how` does not say so.

        Raises:
            ScheduleError: no schedule is that long.
        """
        if not (exact or self.how.steps_exact):
            return steps
        return steps_of_whole(steps, self.strength)


def build_source(
    model: ModelConfig,
    how: SourceConfig,
    picture: SourceFile,
    mask: SourceFile | None = None,
    margins: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Source:
    """Join what a recipe says with the files of one picture.

    Where nobody gave a strength it is 1 if a mask, margins or an editing model say what is to be kept, else 0.6.

    Args:
        model: that draws.
        how: the recipe's words.
        picture: to start from.
        mask: of what is to be repainted.
        margins: (left, top, right, bottom) pixels to be added and painted.

    Raises:
        UsageError: a picture of nearly nothing, margins that make it larger than can be drawn, a mask of another shape
            than the picture, or an inpainting model without anything to paint.
    """
    height, width = picture.size
    if min(height, width) < model.first_stage.factor:
        raise UsageError(
            f"{picture.name} is {width}x{height}, less than one latent cell of {model.first_stage.factor} pixels",
            hint="scale it up first",
        )
    condition = model.kind if model.kind in ("inpaint", "edit") else "none"
    if mask is not None and abs(_shape(mask) - _shape(picture)) > _SAME_SHAPE:
        mask_height, mask_width = mask.size
        raise UsageError(
            f"the mask {mask.name} is {mask_width}x{mask_height} and {picture.name} is {width}x{height}: "
            "they have not the same shape",
            hint=f"draw the mask at {width}x{height}; one of the same shape is scaled",
        )
    part = mask is not None or any(margins)
    if condition == "inpaint" and not part:
        raise UsageError(
            f"{model.name} is an inpainting model, and nothing says what to paint", hint="give --mask FILE, or --pad"
        )
    if how.strength is None:
        how = how.model_copy(update={"strength": 1.0 if part or condition == "edit" else 0.6})
    source = Source(picture=picture, mask=mask, margins=margins, condition=condition, how=how)
    if any(margins) and max(source.canvas_size) > LARGEST_SIDE:
        height, width = source.canvas_size
        raise UsageError(
            f"{picture.name} is {width}x{height} with its margins, which is larger than {LARGEST_SIDE}",
            hint="paint less around it: --pad LEFT,TOP,RIGHT,BOTTOM",
        )
    return source


def _shape(file: SourceFile) -> float:
    return math.log(file.size[1] / file.size[0])
