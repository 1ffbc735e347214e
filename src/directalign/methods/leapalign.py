"""LeapAlign (arXiv 2604.15311): two leaps along the path bring the gradient to any two steps.

The paper: sample the whole path; from two of its states leap at once, x_k to x_j and x_j to x0,
with the network's own predictions there; give the leaps the values of the path where they end
(straight-through), so that the reward scores the sampled image; scale down the gradient that passes
through the second call's input; weigh a sample by how close its leaps came to the path. Here: the
same for every path and prediction type, in as many calls as the rollout has steps, since the two
with gradient serve the path too. The weight is 1 / (max(d_j, tau) + max(d_0, tau)), d the mean
distance per latent value and tau 0.1, as in the baseline released with arXiv 2606.11075. Left out:
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import LeapAlignConfig, RolloutConfig
from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import RolloutStart, linear_step, sample, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, DirectAlignError, Latents, LossTerm, PerSample
from .objective import ObjectiveMethod
from .objective_math import hinge


class LeapAlign(ObjectiveMethod):
    """`losses(batch)` yields one loss, with the gradient of two network calls.

    Raises DirectAlignError for a rollout of one step.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: LeapAlignConfig, rollout: RolloutConfig
    ) -> None:
        self.check(settings, rollout, model.path)
        super().__init__(model, reward, settings, rollout)

    @staticmethod
    def check(settings: LeapAlignConfig, rollout: RolloutConfig, path: str) -> None:
        """Refuse a rollout without two states to leap from."""
        if rollout.num_inference_steps < 2:
            raise DirectAlignError(
                f"rollout.num_inference_steps {rollout.num_inference_steps}: method.name leapalign "
                "leaps from two steps; give at least 2"
            )

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0 with leaps from two states of its path; reward; weigh; yield."""
        start, (k, j) = start_rollout(self.model, self.rollout, batch), self.steps(batch)
        settings, last = self.settings, len(start.sigmas) - 1
        x_k = sample(self.model, start.cond, start.noise, start.sigmas[: k + 1])
        leap_to_j, x_j = self._leap(start, x_k, x_k, k, j)
        carried = leap_to_j - leap_to_j.detach()  # zero, with the gradient of the first leap
        network_input = x_j + settings.nested_scale * carried
        leap_to_0, x0 = self._leap(start, x_j + carried, network_input, j, last)

        output = self.objective(self.model.decode(x0 + (leap_to_0 - leap_to_0.detach())), batch)
        distances = distance(leap_to_j, x_j), distance(leap_to_0, x0)
        weight = similarity_weight(*distances, settings.similarity_floor)
        loss = weight * hinge(output.reward, 1.0, settings.margin)

        named = {"distance_j": distances[0], "distance_0": distances[1], "leap_weight": weight}
        means = {name: float(value.mean()) for name, value in named.items()}
        yield LossTerm(loss.mean(), "leaps", {**output.metrics, **means})

    def steps(self, batch: Batch) -> tuple[int, int]:
        """(k, j): two different steps drawn uniformly, the earlier first; 0: from pure noise."""
        generator = update_generator(batch, STEPS)
        drawn = torch.randperm(self.rollout.num_inference_steps, generator=generator)[:2]
        return int(drawn.min()), int(drawn.max())

    def _leap(
        self, start: RolloutStart, x_t: Latents, network_input: Latents, origin: int, end: int
    ) -> tuple[Latents, Latents]:
        """Ends of the leap and of the sampler's path, from step `origin` to level `end`."""
        model, sigmas = self.model, start.sigmas.to(x_t.device)
        level, next_level, end_level = (
            sigmas[index].expand(len(x_t)) for index in (origin, origin + 1, end)
        )
        pred = model.predict(network_input, level, start.cond)
        native = model.path, model.prediction
        stepped = linear_step(*native, x_t.detach(), pred.detach(), level, next_level)
        sampled = sample(model, start.cond, stepped, sigmas[origin + 1 : end + 1])
        return linear_step(*native, x_t, pred, level, end_level), sampled


def distance(leap: Latents, sampled: Latents) -> PerSample:
    """Mean absolute distance per latent value between the end of a leap and the sampler's path."""
    return (leap.detach() - sampled).abs().mean((1, 2, 3))


def similarity_weight(to_j: PerSample, to_0: PerSample, floor: float | None) -> Tensor:
    """Larger for leaps close to the path, at most 1 / (2·floor); 1 for all without a `floor`."""
    if floor is None:
        return torch.ones_like(to_j)
    return 1 / (to_j.clamp(min=floor) + to_0.clamp(min=floor))
