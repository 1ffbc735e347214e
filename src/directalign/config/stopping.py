"""When a run ends itself, and by what it chooses the weights that are left: the `stop:` section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Positive, Strict

Allowance = Annotated[float, Field(gt=0)]


class Stop(Strict):
    """What a run may lose, and for how long it may get no better. With this section the best weights are left, not the last ones."""

    drift: dict[str, Allowance] = Field(
        default_factory=dict,
        description="How far measured numbers may move for the worse from the base model's values, by name, e.g. {content: 0.03, color_drift: 0.05}.",
    )
    drift_patience: Positive = Field(default=2, description="Measurements in a row over that budget before the run stops; none of them is ever kept.")
    judge: str | None = Field(
        default=None,
        description="The measured number that says how good the weights are; none takes photo_rate, else the first held-out reward, else score_pos or reward.",
        min_length=1,
    )
    judge_patience: Positive | None = Field(
        default=None, description="Measurements in a row without a better judge before the run stops; none never stops for it."
    )
    score_patience: Positive | None = Field(
        default=None,
        description="Measurements in a row with an absolute score clearly below its peak before the run stops; needs no judge; none never stops for it.",
    )
