"""What all sections of a recipe share: strictness, and the plain kinds of numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Sigma = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[
    tuple[float, float],
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
]
"""YAML has lists only; read strictly, a list is no tuple."""

Side = Annotated[int, Field(ge=8)]
Size = Annotated[
    tuple[Side, Side],
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
]
"""(height, width) in pixels."""
DtypeName = Literal["float32", "bfloat16"]


class Strict(BaseModel):
    """Base of all sections: no unknown keys, no silent coercion of strings to numbers, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
