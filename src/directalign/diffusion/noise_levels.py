"""How pairs of noise levels are drawn for a training step.

A sampler draws one target level per image, and both branches of a step end there: `denoise(target)`
starts above it, `inversion(target)` below. The samplers share that interface: draw, denoise,
inversion. That of a rollout's own steps has no inversion.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from ..types import DirectAlignError, PathName, PredictionName
from .path import alpha, shift_sigmas

SigmaBatch = Float64[Tensor, " b"]
GridPoints = Int64[Tensor, " b"]

MAX_JUMP_FRACTION = 0.9
"""Largest share of the way to clean or pure noise that a continuous sampler's step covers."""


@dataclass(frozen=True)
class NoiseStep:
    """A step from `sigma_from` to `sigma_to`, both (b,).

    `position` in [0, 1] is the place of the step's low-noise end in the sampler's range (0: low
    noise), where ramps are read. `discount_position` is where the discount is read.
    """

    sigma_from: SigmaBatch
    sigma_to: SigmaBatch
    position: SigmaBatch
    discount_position: SigmaBatch


@dataclass(frozen=True)
class GridSampler:
    """The official grid: indices `first`..`last` of a shifted grid, in `points` linear points.

    Points are numbered from 1 at the low-noise end. A target is a point m, and both steps are
    span(m) points long. Near the low-noise end, where m − span would be point 0, inversion starts
    at point 1 and ends one point higher. Ramps are read one point too high, at `point / (points −
    1)`, the discount at `point / points`, as in the official step (arXiv 2509.06942, released
    code). The `edge` points at either end are never a target.
    """

    schedule_steps: int = 50
    schedule_shift: float = 3.0
    first: int = 5
    last: int = 25
    points: int = 1000
    groundtruth_ratio: float = 0.9
    edge: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.schedule_steps:
            raise DirectAlignError(
                f"window {self.first}..{self.last} is not a part of 0..{self.schedule_steps}: "
                "choose 0 <= first < last <= schedule_steps"
            )
        if self.points < 2 * self.edge:
            raise DirectAlignError(
                f"points is {self.points}: at least {2 * self.edge} are needed, because the "
                f"{self.edge} points at either end are never a target (edge)"
            )

    @cached_property
    def levels(self) -> Float32[Tensor, " points"]:
        """Noise level of every point, rising. float32 as in the official step: with truncated
        timesteps the last digit matters where a level is a whole timestep."""
        grid = torch.linspace(1, 0, self.schedule_steps + 1, dtype=torch.float32)
        grid = shift_sigmas(grid, self.schedule_shift)
        high, low = float(grid[self.first]), float(grid[self.last])
        return torch.linspace(high, low, self.points, dtype=torch.float32).flip(0)

    def draw(self, b: int, generator: torch.Generator) -> GridPoints:
        """A target point for each of `b` samples."""
        return torch.randint(self.edge, self.points - self.edge + 1, (b,), generator=generator)

    def span(self, m: GridPoints) -> GridPoints:
        """Points of a step that ends at `m`: (1 − groundtruth_ratio) of the grid at most."""
        longest = int((1 - self.groundtruth_ratio) * self.points) + 1
        return torch.minimum(self.points - m, m).clamp(max=longest)

    def denoise(self, m: GridPoints) -> NoiseStep:
        """Down from point m + span to point m."""
        return self._step(m + self.span(m), m)

    def inversion(self, m: GridPoints) -> NoiseStep:
        """Up from point m − span, but from point 1 at least."""
        span = self.span(m)
        start = (m - span).clamp(min=1)
        return self._step(start, start + span)

    def _step(self, start: GridPoints, end: GridPoints) -> NoiseStep:
        sigma_from, sigma_to = (self.levels[point - 1].double() for point in (start, end))
        point = torch.minimum(start, end).double()
        return NoiseStep(sigma_from, sigma_to, point / (self.points - 1), point / self.points)


@dataclass(frozen=True)
class _ContinuousSampler:
    """Target level uniform in [sigma_low, sigma_high]; subclasses choose where a step starts.

    A step covers at most `MAX_JUMP_FRACTION` of the way from its target to clean or pure noise.
    """

    sigma_high: float
    sigma_low: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_low < self.sigma_high <= 1:
            raise DirectAlignError(
                f"sigma_low {self.sigma_low} and sigma_high {self.sigma_high} do not span a range: "
                "choose 0 <= sigma_low < sigma_high <= 1"
            )

    def draw(self, b: int, generator: torch.Generator) -> SigmaBatch:
        """A target level for each of `b` samples."""
        draws = torch.rand(b, generator=generator, dtype=torch.float64)
        return self.sigma_low + (self.sigma_high - self.sigma_low) * draws

    def denoise(self, target: SigmaBatch) -> NoiseStep:
        """Down to the target."""
        farthest = target + MAX_JUMP_FRACTION * (1 - target)
        return self._step(torch.minimum(self._start(target, 1), farthest), target)

    def inversion(self, target: SigmaBatch) -> NoiseStep:
        """Up to the target."""
        farthest = target - MAX_JUMP_FRACTION * target
        return self._step(torch.maximum(self._start(target, -1), farthest), target)

    def _step(self, start: SigmaBatch, target: SigmaBatch) -> NoiseStep:
        low_end = torch.minimum(start, target)
        position = (low_end - self.sigma_low) / (self.sigma_high - self.sigma_low)
        return NoiseStep(start, target, *[position.clamp(0, 1)] * 2)

    def _start(self, target: SigmaBatch, sign: int) -> SigmaBatch:
        """Where a step to `target` starts: above it for sign 1, below for −1."""
        raise NotImplementedError


@dataclass(frozen=True)
class UniformSampler(_ContinuousSampler):
    """Steps of a fixed jump."""

    jump: float

    def _start(self, target: SigmaBatch, sign: int) -> SigmaBatch:
        return target + sign * self.jump


@dataclass(frozen=True)
class ConstantGainSampler(_ContinuousSampler):
    """Steps of a fixed |gain|: positive for denoise, negative for inversion."""

    gain: float
    path: PathName
    prediction: PredictionName

    def _start(self, target: SigmaBatch, sign: int) -> SigmaBatch:
        """The start f with gain(f, target) = g = ±gain (docs/method.md, section 1):

        flow, velocity    f = t + g·(1 − t)
        vp, epsilon       f = u / √(1 + u²), u = t/√(1 − t²) + g
        vp, v             f = sin(asin t + asin(g·cos(asin t)))
        """
        gain, signal = sign * self.gain, alpha(self.path, target)
        if self.path == "flow":
            return target + gain * signal
        if self.prediction == "epsilon":
            odds = target / signal + gain
            return odds / (1 + odds**2).sqrt()
        return (target.asin() + (gain * signal).clamp(-1, 1).asin()).sin()


@dataclass(frozen=True)
class RolloutSampler:
    """Steps `first`..`last` (none: the last one) of a rollout with the falling `levels`, each from
    one level to the next."""

    levels: Float[Tensor, " n"]
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        if not self.first <= self.end < len(self.levels) - 1:
            raise DirectAlignError(
                f"noise_levels: steps {self.first}..{self.end} are not among the rollout's "
                f"0..{len(self.levels) - 2}: choose 0 <= first <= last < rollout steps"
            )

    @property
    def end(self) -> int:
        return len(self.levels) - 2 if self.last is None else self.last

    def draw(self, b: int, generator: torch.Generator) -> GridPoints:
        """A step for each of `b` samples."""
        return torch.randint(self.first, self.end + 1, (b,), generator=generator)

    def denoise(self, step: GridPoints) -> NoiseStep:
        """From the level at which the rollout's step starts to the next."""
        sigma_from, sigma_to = (self.levels.double()[each] for each in (step, step + 1))
        high, low = self.levels.double()[self.first], self.levels.double()[self.end + 1]
        position = (sigma_to - low) / (high - low)
        return NoiseStep(sigma_from, sigma_to, position, position)


SigmaSampler = GridSampler | UniformSampler | ConstantGainSampler | RolloutSampler
