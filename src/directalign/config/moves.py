"""How pairs of noise levels are drawn, and numbers that ramp over the window they are drawn from (see core/moves.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Positive, Sigma, Strict


class Ramp(Strict):
    """A number that runs linearly over the training window."""

    low_noise: float = Field(default=0.0, description="Value at the low-noise end of the window.")
    high_noise: float = Field(default=0.0, description="Value at the high-noise end of the window.")


class Branch(Strict):
    """The additive ramps of one branch: reward = (1 + k_pos)·pos − (1 + k_neg)·neg."""

    k_pos: Ramp = Field(default=Ramp(), description="Extra weight of the desired phrase.")
    k_neg: Ramp = Field(default=Ramp(), description="Extra weight of the undesired phrase.")


class WindowMoves(Strict):
    """The official grid: part of a shifted sampling grid, re-divided into linear points (arXiv 2509.06942)."""

    kind: Literal["window"] = "window"
    schedule_steps: Positive = Field(default=50, description="Steps of the grid that the window is cut from.")
    schedule_shift: float = Field(default=3.0, description="Shift of that grid: s' = shift·s / (1 + (shift − 1)·s).", gt=0)
    first: int = Field(default=5, description="Grid index of the high-noise end.", ge=0)
    last: int = Field(default=25, description="Grid index of the low-noise end.", ge=1)
    points: Annotated[int, Field(ge=11)] = Field(default=1000, description="Linear points that the window is divided into.")
    groundtruth_ratio: float = Field(default=0.9, description="A move crosses (1 − ratio) of the window at most.", ge=0, lt=1)


class UniformMoves(Strict):
    """Landing sigma uniform, jump fixed."""

    kind: Literal["uniform"] = "uniform"
    sigma_high: Sigma = Field(default=0.96, description="High-noise end of the window.")
    sigma_low: Sigma = Field(default=0.5, description="Low-noise end of the window.")
    jump: float = Field(default=0.02, description="|sigma_from − sigma_to| of every move.", gt=0, lt=1)


class ConstantGainMoves(Strict):
    """Landing sigma uniform, the start solved so that every move has the same |gain|."""

    kind: Literal["constant_gain"] = "constant_gain"
    sigma_high: Sigma = Field(default=0.96, description="High-noise end of the window.")
    sigma_low: Sigma = Field(default=0.5, description="Low-noise end of the window.")
    gain: float = Field(default=0.15, description="|gain|: how much of the network's residual reaches the recovered image.", gt=0)


Moves = Annotated[WindowMoves | UniformMoves | ConstantGainMoves, Field(discriminator="kind")]
