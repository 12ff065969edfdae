"""The base of all configuration."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Config(BaseModel):
    """Base of all configuration: unknown keys, coercions and later changes are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
