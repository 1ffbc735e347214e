"""What is maximised: the settings that all methods share (see methods/objective.py)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Positive, Strict


class ControlPhrases(Strict):
    """Control phrases that are put before the prompt: "Realistic photo. a red star". One that ends in .safetensors is a file of learned tokens."""

    positive: list[str] = Field(default_factory=list, description="Desired phrases.")
    negative: list[str] = Field(
        default_factory=list, description="Undesired phrases; each list cycles at its own length."
    )
    order: Literal["cycle", "fixed", "average"] = Field(
        default="cycle",
        description="A phrase of each list per step in turn (official), always the first, or the mean over all.",
    )


class Anchor(Strict):
    """Our anchored relative reward: (pos − neg) − (plain − reference)² / (2·tolerance)."""

    tolerance: float = Field(
        default=0.05,
        description="Deviation of the plain score, in its units, at which the anchor pulls as hard as the relative term.",
        gt=0,
    )
    reference_updates: Positive = Field(
        default=5,
        description="First updates over which the reference, the mean plain score, is measured.",
    )


class ObjectiveConfig(Strict):
    """Settings that all methods share: form, control phrases, anchor."""

    form: Literal["absolute", "relative", "anchored"] = Field(
        default="absolute",
        description="absolute: the score under the positive phrases, else the bare prompt; relative: positive minus negative; anchored: bare score held too.",
    )
    words: ControlPhrases = Field(default=ControlPhrases(), description="Control phrases.")
    anchor: Anchor = Field(default=Anchor(), description="Settings of the anchored form.")
    margin: float | None = Field(
        default=None, description="Margin of the hinge; none takes the identity."
    )
    image_mapping: Literal["clamp", "min_max"] = Field(
        default="clamp",
        description="How decoded images reach the reward: clamped to [0, 1], or stretched per image.",
    )

    @model_validator(mode="after")
    def _words_fit_form(self) -> ObjectiveConfig:
        positive, negative = self.words.positive, self.words.negative
        if self.form != "absolute" and not (positive and negative):
            raise ValueError(
                f"form {self.form} compares two phrasings: give words.positive and words.negative, or set form: absolute"
            )
        return self
