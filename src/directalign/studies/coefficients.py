"""How much of a step's gradient is absolute and how much relative preference: measured on the weights, and derived from the ramps.

The gradient that the trainer would apply is fitted, by least squares, with the gradients that a purely absolute reward
(pos + neg)/2 and a purely relative one (pos − neg) would give at the same noise level. docs/method.md, section 4, derives what
must come out: each branch adds (k_pos − k_neg) of the first and 1 + (k_pos + k_neg)/2 of the second.
"""

from __future__ import annotations

from ..config import SRPOConfig as Settings
from ..config import BranchConfig, RampConfig, RolloutConfig, GridNoiseLevels
from ..diffusion import noise_levels
from ..interfaces import Model, Reward
from ..methods.objective_math import absolute_relative, from_absolute_relative
from ..methods.srpo import SRPO
from ..models import trainable
from ..types import Batch, DirectAlignError
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
import torch
from jaxtyping import Float
from torch import Tensor


Weights = Float[Tensor, " weights"]


@dataclass(frozen=True)
class LandsAt(noise_levels.GridSampler):
    """The official grid, where every sample lands on one point."""

    point: int = 500

    def draw(self, b: int, generator: torch.Generator) -> noise_levels.GridPoints:
        """`point`, `b` times; nothing is drawn."""
        return torch.full((b,), self.point)


@dataclass(frozen=True)
class Fit:
    """gradient ≈ absolute·(gradient of (pos + neg)/2) + relative·(gradient of pos − neg); `explained` is the share of its square, 0 to 1."""

    absolute: float
    relative: float
    explained: float


def project(gradient: Weights, absolute: Weights, relative: Weights) -> Fit:
    """Least squares of a gradient on two others, in float64."""
    gradient, absolute, relative = (each.double() for each in (gradient, absolute, relative))
    basis = torch.stack([absolute, relative])
    weights = torch.linalg.solve(basis @ basis.T, basis @ gradient)
    left = gradient - weights @ basis
    return Fit(float(weights[0]), float(weights[1]), 1 - float(left.dot(left) / gradient.dot(gradient)))


def derived(settings: Settings, window: noise_levels.GridSampler, point: int) -> tuple[float, float]:
    """(absolute, relative) weight of an update that lands on `point`: the sum over the branches that `settings` takes."""
    landing = torch.tensor([point])
    ways = {"denoise": (window.denoise, settings.denoise), "inversion": (window.inversion, settings.inversion)}
    taken = ways if settings.branches == "both" else {settings.branches: ways[settings.branches]}
    weights = [_weights(ramps, move(landing).position) for move, ramps in taken.values()]
    return math.fsum(mu for mu, _ in weights), math.fsum(nu for _, nu in weights)


def _weights(ramps: BranchConfig, position: Tensor) -> tuple[float, float]:
    k_pos, k_neg = (float(noise_levels.Ramp(ramp.low_noise, ramp.high_noise).at(position)) for ramp in (ramps.k_pos, ramps.k_neg))
    mu, nu = absolute_relative(k_pos, k_neg)
    return float(mu), float(nu)


def purely(settings: Settings, absolute: float, relative: float) -> Settings:
    """The same moves and branches under a reward of these two constant weights in each branch."""
    k_pos, k_neg = (float(k) for k in from_absolute_relative(absolute, relative))
    branch = BranchConfig(k_pos=RampConfig(low_noise=k_pos, high_noise=k_pos), k_neg=RampConfig(low_noise=k_neg, high_noise=k_neg))
    return settings.model_copy(update={"denoise": branch, "inversion": branch})


def ascent(family: Model, reward: Reward, settings: Settings, rollout: RolloutConfig, batch: Batch, point: int) -> Weights:
    """The direction in which one update of these settings, landing on `point`, moves the weights: minus the gradient of its loss."""
    method = SRPO(family, reward, settings, rollout)
    method.window = LandsAt(**asdict(grid_of(settings)), point=point)
    parameters = list(trainable(family).values())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in method.losses(batch):
        gradients = torch.autograd.grad(loss.value, parameters, materialize_grads=True)
        total = [so_far - gradient for so_far, gradient in zip(total, gradients, strict=True)]
    return torch.cat([each.flatten() for each in total])


def grid_of(settings: Settings) -> noise_levels.GridSampler:
    """The official grid that the settings describe.

    Raises: DirectAlignError for moves of another kind.
    """
    chosen = settings.moves
    if not isinstance(chosen, GridNoiseLevels):
        raise DirectAlignError(f"method.moves.kind {chosen.kind}: coefficients are read off the official grid; set method.moves.kind: window")
    return noise_levels.GridSampler(chosen.schedule_steps, chosen.schedule_shift, chosen.first, chosen.last, chosen.points, chosen.groundtruth_ratio)


def measured(
    family: Model, reward: Reward, arms: Mapping[str, Settings], official: Settings, rollout: RolloutConfig, batch: Batch, point: int
) -> dict[str, tuple[Fit, float]]:
    """For every arm, its fit at one landing and the cosine of its gradient with that of the official step.

    All are fitted with the same two gradients: those of the official moves, averaged over the branches that they take.
    """

    def direction(settings: Settings) -> Weights:
        return ascent(family, reward, settings, rollout, batch, point)

    branches = 2 if official.branches == "both" else 1
    absolute, relative = (direction(purely(official, mu, nu)) / branches for mu, nu in ((1.0, 0.0), (0.0, 1.0)))
    reference = direction(official)
    found = {name: direction(settings) for name, settings in arms.items()}
    return {name: (project(gradient, absolute, relative), cosine(gradient, reference)) for name, gradient in found.items()}


def cosine(a: Weights, b: Weights) -> float:
    """Of the angle between two gradients, in float64."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
