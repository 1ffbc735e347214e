"""Pairs of noise levels, how they are drawn, and numbers that ramp over the window they are drawn from.

A window draws a `landing` per sample, and both branches of a step end there: `denoise(landing)` comes from above,
`inversion(landing)` from below. The three windows share that shape: draw, denoise, inversion.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from ..types import DirectAlignError, PathName, PredictionName
from . import recovery
from .path import shifted

Levels = Float64[Tensor, " b"]
Points = Int64[Tensor, " b"]

EDGE = 5
"""Points at either end of the official grid where no move lands."""
REACH = 0.9
"""Share of the way to clean, or to pure noise, that a move of the continuous windows may cover."""


@dataclass(frozen=True)
class Move:
    """A step from `sigma_from` to `sigma_to`, both (b,); `position` in [0, 1] is the place of its low-noise end in the
    window (0 = low-noise end of the window), where ramps and discount are read."""

    sigma_from: Levels
    sigma_to: Levels
    position: Levels

    @property
    def is_denoise(self) -> bool:
        """Noise is removed."""
        return bool((self.sigma_to < self.sigma_from).all())

    @property
    def is_inversion(self) -> bool:
        """Noise is added."""
        return bool((self.sigma_to > self.sigma_from).all())


@dataclass(frozen=True)
class Ramp:
    """A number that runs linearly over the window."""

    low_noise: float
    high_noise: float

    def at(self, position: Levels) -> Levels:
        """Its value at a place in [0, 1] of the window."""
        return self.low_noise + (self.high_noise - self.low_noise) * position


@dataclass(frozen=True)
class WindowGrid:
    """The official grid: indices `first`..`last` of a shifted sampling grid, re-divided into `points` linear points.

    Points are numbered from 1 at the low-noise end. A landing is a point m. Both moves are span(m) points long; near the
    low-noise end, where m − span would be point 0, inversion starts at point 1 and lands one higher. Positions are read
    one point too high, `point / (points − 1)`, as the official step does (arXiv 2509.06942, released code).
    """

    schedule_steps: int = 50
    schedule_shift: float = 3.0
    first: int = 5
    last: int = 25
    points: int = 1000
    groundtruth_ratio: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.schedule_steps:
            raise DirectAlignError(f"window {self.first}..{self.last} is not a part of 0..{self.schedule_steps}: choose 0 <= first < last <= schedule_steps")
        if self.points <= 2 * EDGE:
            raise DirectAlignError(f"points is {self.points}: {2 * EDGE + 1} or more are needed, as no move lands on the {EDGE} at either end")

    @cached_property
    def levels(self) -> Float32[Tensor, " points"]:
        """Noise level of every point, from low to high; float32 as in the official step, for a network that is shown
        truncated timesteps hears the last digit at a whole one."""
        grid = shifted(torch.linspace(1, 0, self.schedule_steps + 1, dtype=torch.float32), self.schedule_shift)
        return torch.linspace(float(grid[self.first]), float(grid[self.last]), self.points, dtype=torch.float32).flip(0)

    def draw(self, b: int, generator: torch.Generator) -> Points:
        """A landing point for each of `b` samples."""
        return torch.randint(EDGE, self.points - EDGE, (b,), generator=generator)

    def span(self, m: Points) -> Points:
        """Length in points of the moves that land on `m`: at most (1 − groundtruth_ratio) of the grid, less at its ends."""
        longest = int((1 - self.groundtruth_ratio) * self.points) + 1
        return torch.minimum(self.points - m, m).clamp(max=longest)

    def denoise(self, m: Points) -> Move:
        """Down from point m + span to point m."""
        return self._move(m + self.span(m), m)

    def inversion(self, m: Points) -> Move:
        """Up from point m − span, but from point 1 at least."""
        span = self.span(m)
        start = (m - span).clamp(min=1)
        return self._move(start, start + span)

    def _move(self, start: Points, end: Points) -> Move:
        sigma_from, sigma_to = (self.levels[point - 1].double() for point in (start, end))
        return Move(sigma_from, sigma_to, torch.minimum(start, end).double() / (self.points - 1))


@dataclass(frozen=True)
class UniformWindow:
    """Landing level uniform between `sigma_low` and `sigma_high`, jump fixed (shorter only where `REACH` ends it)."""

    sigma_high: float
    sigma_low: float
    jump: float

    def __post_init__(self) -> None:
        _check_window(self.sigma_high, self.sigma_low)

    def draw(self, b: int, generator: torch.Generator) -> Levels:
        """A landing level for each of `b` samples."""
        return _uniform(self.sigma_high, self.sigma_low, b, generator)

    def denoise(self, landing: Levels) -> Move:
        """Down from landing + jump."""
        return _between(torch.minimum(landing + self.jump, _highest(landing)), landing, self.sigma_high, self.sigma_low)

    def inversion(self, landing: Levels) -> Move:
        """Up from landing − jump."""
        return _between(torch.maximum(landing - self.jump, _lowest(landing)), landing, self.sigma_high, self.sigma_low)


@dataclass(frozen=True)
class ConstantGainWindow:
    """Landing level uniform, and the start solved so that |gain| is the same on every move that `REACH` allows."""

    sigma_high: float
    sigma_low: float
    gain: float
    path: PathName
    prediction: PredictionName

    def __post_init__(self) -> None:
        _check_window(self.sigma_high, self.sigma_low)

    def draw(self, b: int, generator: torch.Generator) -> Levels:
        """A landing level for each of `b` samples."""
        return _uniform(self.sigma_high, self.sigma_low, b, generator)

    def denoise(self, landing: Levels) -> Move:
        """Down to the landing with gain > 0."""
        return _between(self._start(landing, _highest(landing)), landing, self.sigma_high, self.sigma_low)

    def inversion(self, landing: Levels) -> Move:
        """Up to the landing with gain < 0."""
        return _between(self._start(landing, _lowest(landing)), landing, self.sigma_high, self.sigma_low)

    def _start(self, landing: Levels, farthest: Levels) -> Levels:
        """Bisection: |gain| grows from 0 as the start leaves the landing for `farthest`."""
        near, far = landing, farthest
        for _ in range(60):
            middle = (near + far) / 2
            too_far = recovery.gain(self.path, self.prediction, middle, landing).abs() > self.gain
            near, far = torch.where(too_far, near, middle), torch.where(too_far, middle, far)
        return far


Window = WindowGrid | UniformWindow | ConstantGainWindow


def _uniform(sigma_high: float, sigma_low: float, b: int, generator: torch.Generator) -> Levels:
    return sigma_low + (sigma_high - sigma_low) * torch.rand(b, generator=generator, dtype=torch.float64)


def _highest(landing: Levels) -> Levels:
    return landing + REACH * (1 - landing)


def _lowest(landing: Levels) -> Levels:
    return landing - REACH * landing


def _between(start: Levels, landing: Levels, sigma_high: float, sigma_low: float) -> Move:
    position = (torch.minimum(start, landing) - sigma_low) / (sigma_high - sigma_low)
    return Move(start, landing, position.clamp(0, 1))


def _check_window(sigma_high: float, sigma_low: float) -> None:
    if not 0 <= sigma_low < sigma_high <= 1:
        raise DirectAlignError(f"sigma_low {sigma_low} and sigma_high {sigma_high} do not span a window: choose 0 <= sigma_low < sigma_high <= 1")
