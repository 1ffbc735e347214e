"""Sections inside of the settings of several methods: ramps, noise, phrases, anchor, ceiling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import NonNegative, Positive, PositiveFloat, Sigma, Steps, Strict

FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]


class RampConfig(Strict):
    """A number that changes linearly over the training window."""

    low_noise: float = 0.0
    """Value at the low-noise end of the window."""
    high_noise: float = 0.0
    """Value at the high-noise end of the window."""

    def at(self, position: Any) -> Any:
        """Its value at `position` in [0, 1], a number or tensor; 0 is the low-noise end."""
        return self.low_noise + (self.high_noise - self.low_noise) * position


class BranchConfig(Strict):
    """The ramps of one branch: reward = (1 + k_pos)·pos − (1 + k_neg)·neg."""

    k_pos: RampConfig = RampConfig()
    """Additional weight of the score under the positive phrase."""
    k_neg: RampConfig = RampConfig()
    """Additional weight of the score under the negative phrase."""


class GridNoiseLevels(Strict):
    """The official grid: part of a shifted sampling grid, divided into linear points (arXiv
    2509.06942)."""

    kind: Literal["window"] = "window"
    schedule_steps: Steps = 50
    """Steps of the sampling grid of which the window is a part."""
    schedule_shift: PositiveFloat = 3.0
    """Shift of that grid: s' = shift·s / (1 + (shift − 1)·s)."""
    first: NonNegative = 5
    """Grid index of the high-noise end."""
    last: Positive = 25
    """Grid index of the low-noise end."""
    points: Annotated[int, Field(ge=2)] = 1000
    """Linear points into which the window is divided."""
    edge: Positive = 5
    """Points at either end of the window that are never a target; at most half of `points`."""
    groundtruth_ratio: FractionBelowOne = 0.9
    """A step spans at most (1 − ratio) of the window."""


class UniformNoiseLevels(Strict):
    """Target sigma uniform in the window, step size fixed."""

    kind: Literal["uniform"] = "uniform"
    sigma_high: Sigma = 0.96
    """High-noise end of the window."""
    sigma_low: Sigma = 0.5
    """Low-noise end of the window."""
    jump: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """|sigma_from − sigma_to| of every step."""


class ConstantGainNoiseLevels(Strict):
    """Target sigma uniform in the window; the start is solved so that every step has the same
    |gain|."""

    kind: Literal["constant_gain"] = "constant_gain"
    sigma_high: Sigma = 0.96
    """High-noise end of the window."""
    sigma_low: Sigma = 0.5
    """Low-noise end of the window."""
    gain: PositiveFloat = 0.15
    """|gain|: factor of the network's residual (target − pred) in the recovered image."""


class RolloutNoiseLevels(Strict):
    """The levels of the rollout itself, a step from one to the next: what a network distilled to a
    few steps has learned, and no other."""

    kind: Literal["rollout"] = "rollout"
    first: NonNegative = 0
    """First trained step of the rollout, from 0, which starts at pure noise."""
    last: NonNegative | None = None
    """Last trained step; none: that of the rollout, which ends at the clean image."""


NoiseLevels = Annotated[
    GridNoiseLevels | UniformNoiseLevels | ConstantGainNoiseLevels | RolloutNoiseLevels,
    Field(discriminator="kind"),
]


class ControlPhrases(Strict):
    """Control phrases, put before the prompt: "Realistic photo. a red star". A phrase that ends in
    .safetensors is a file of soft prompts."""

    positive: list[str] = []
    """Desired phrases."""
    negative: list[str] = []
    """Undesired phrases; each list cycles with its own length."""
    order: Literal["cycle", "fixed", "average"] = "cycle"
    """cycle: the next phrase of each list at each update (official); fixed: always the first;
    average: the mean over all."""
    cycle_start: NonNegative = 0
    """Position in each list of the first update's phrase (official for FLUX: 1)."""

    @model_validator(mode="after")
    def _check_phrases(self) -> ControlPhrases:
        undesired = {phrase.strip(" .,").casefold() for phrase in self.negative}
        for phrase in self.positive:
            if phrase.strip(" .,").casefold() in undesired:
                raise ValueError(
                    f"control_phrases: {phrase!r} is both positive and negative, so that its "
                    "reward cancels: remove it from one of the lists"
                )
        return self


class AnchorConfig(Strict):
    """Our anchored relative reward: (pos − neg) − (plain − reference)² / (2·tolerance)."""

    tolerance: PositiveFloat = 0.05
    """Deviation of the plain score, in its units, at which the anchor's gradient equals that of the
    relative term."""
    reference_updates: Positive = 5
    """Number of first updates over which the reference, the mean plain score, is measured."""


class CeilingConfig(Strict):
    """Where the relative term stops to pay: the reward has min(pos − neg, gap + margin). Ours."""

    gap: float | None = None
    """pos − neg of images that are good enough, in units of the score; none measures it once before
    training, on images that the base model makes with the positive phrases in their prompts. The
    anchored form then has their mean plain score as its reference, too."""
    best: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the base's own images, unasked, the best by pos − neg, whose mean gap is the
    ceiling; none asks with the positive phrases. The anchor's reference is then the mean plain
    score of all the images."""
    images: Positive = 128
    """Number of images of that measurement."""
    margin: float = 0.03
    """Added to the gap."""

    @model_validator(mode="after")
    def _check_gap(self) -> CeilingConfig:
        if self.gap is not None and self.best is not None:
            raise ValueError(
                f"ceiling.gap {self.gap} leaves nothing to measure, and best {self.best} is for "
                "the measurement: remove one of them"
            )
        return self

    @property
    def asks(self) -> bool:
        """Whether the gap is measured on images that are asked with the positive phrases."""
        return self.gap is None and self.best is None


class NoiseConfig(Strict):
    """The known noise that is injected into clean images."""

    source: Literal["rollout", "fresh"] = "rollout"
    """rollout: the initial noise of the rollout (official); fresh: a new draw. Real images always
    use a new draw."""
    scope: Literal["fixed", "shared", "per_rank"] = "per_rank"
    """shared: one noise per update for all samples and ranks (official for FLUX); fixed: one
    rollout noise for all updates, too (official for Qwen-Image); per_rank: one noise per sample."""
