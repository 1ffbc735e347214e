"""LeapAlign (arXiv 2604.15311): two leaps along the sampled path bring the gradient to any two of its steps.

The paper: sample the whole path; from two of its states leap at once, x_k to x_j and x_j to x0, with the network's own
answers there; give the leaps the values of the path where they land (straight-through), so that the reward judges the
sampled image; scale down the gradient that passes through the second call's input; weigh a sample by how close its
leaps came to the path. Here: the same for every path and prediction, in as many calls as the rollout has steps, since
the two with gradient serve the path too. The weight is 1 / (max(d_j, tau) + max(d_0, tau)), d the mean distance per
latent value and tau 0.1, as in the baseline released with arXiv 2606.11075. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import LeapAlignConfig as Settings
from ..config import RolloutConfig as RolloutSettings
from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import RolloutStart, linear_step, sample, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, DirectAlignError, Latents, LossTerm, PerSample
from .objective import build_objective
from .objective_math import hinge


class LeapAlign:
    """`losses(batch)` yields one loss, with the gradient of two network calls.

    Raises DirectAlignError for a reward without gradient, for one that ignores the prompt where the form compares two
    phrasings, and for a rollout of one step.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: Settings, rollout: RolloutSettings
    ) -> None:
        check_steps(rollout)
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0, leaping from two of the states on its way; reward; weigh; yield."""
        begun, (k, j) = start_rollout(self.model, self.rollout, batch), self.steps(batch)
        x_k = sample(self.model, begun.cond, begun.noise, begun.sigmas[: k + 1])
        leap_to_j, x_j = self._leap(begun, x_k, x_k, k, j)
        carried = leap_to_j - leap_to_j.detach()  # zero, with the gradient of the first leap
        leap_to_0, x0 = self._leap(
            begun,
            x_j + carried,
            x_j + self.settings.nested_scale * carried,
            j,
            len(begun.sigmas) - 1,
        )

        output = self.objective(self.model.decode(x0 + (leap_to_0 - leap_to_0.detach())), batch)
        distances = distance(leap_to_j, x_j), distance(leap_to_0, x0)
        weight = similarity_weight(*distances, self.settings.similarity_floor)
        loss = weight * hinge(output.reward, 1.0, self.settings.margin)

        named = {"distance_j": distances[0], "distance_0": distances[1], "leap_weight": weight}
        yield LossTerm(
            loss.mean(),
            "leaps",
            {**output.metrics, **{name: float(value.mean()) for name, value in named.items()}},
        )

    def steps(self, batch: Batch) -> tuple[int, int]:
        """(k, j): two different steps of the rollout, drawn uniformly, the earlier first; 0 is the first step, from pure noise."""
        drawn = torch.randperm(
            self.rollout.num_inference_steps, generator=update_generator(batch, STEPS)
        )[:2]
        return int(drawn.min()), int(drawn.max())

    def _leap(
        self, begun: RolloutStart, x_t: Latents, shown: Latents, origin: int, end: int
    ) -> tuple[Latents, Latents]:
        """(where one leap lands, where the sampler arrives) from step `origin` to level `end`; one call with gradient, on `shown`."""
        model, sigmas = self.model, begun.sigmas.to(x_t.device)
        level, next_level, end_level = (
            sigmas[index].expand(len(x_t)) for index in (origin, origin + 1, end)
        )
        pred = model.predict(shown, level, begun.cond)
        stepped = linear_step(
            model.path, model.prediction, x_t.detach(), pred.detach(), level, next_level
        )
        arrived = sample(model, begun.cond, stepped, sigmas[origin + 1 : end + 1])
        return linear_step(model.path, model.prediction, x_t, pred, level, end_level), arrived

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)


def distance(leap: Latents, arrived: Latents) -> PerSample:
    """Mean distance of each sample's latent values from where they should have landed."""
    return (leap.detach() - arrived).abs().mean((1, 2, 3))


def similarity_weight(to_j: PerSample, to_0: PerSample, floor: float | None) -> Tensor:
    """Larger for leaps that stay close to the path, at most 1 / (2·floor); 1 for all without a `floor`."""
    if floor is None:
        return torch.ones_like(to_j)
    return 1 / (to_j.clamp(min=floor) + to_0.clamp(min=floor))


def check_steps(rollout: RolloutSettings) -> None:
    """Refuse a rollout without two states to leap from."""
    if rollout.num_inference_steps < 2:
        raise DirectAlignError(
            f"rollout.num_inference_steps {rollout.num_inference_steps}: method.name leapalign leaps from two steps; give at least 2"
        )
