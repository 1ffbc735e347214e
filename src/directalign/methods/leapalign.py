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

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from ..config import LeapAlignConfig, RolloutConfig
from ..device import to_device
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import RolloutStart, linear_step, predict
from ..interfaces import Model, Reward
from ..types import Batch, DirectAlignError, Latents, LossTerm, PerSample
from .objective import ObjectiveMethod
from .objective_math import hinge, similarity_weight

Steps = Int64[Tensor, " b"]
"""One step of the rollout per sample."""


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
        start, steps = self.start(batch), self.steps(batch)
        settings = self.settings
        x0, leap_to_0, distances = self._leaps(start, *steps)

        output = self.objective(self.seen(x0 + (leap_to_0 - leap_to_0.detach())), batch)
        weight = similarity_weight(*distances, settings.similarity_floor)
        loss = weight * hinge(output.reward, 1.0, settings.margin)

        named = {"distance_j": distances[0], "distance_0": distances[1], "leap_weight": weight}
        means = {name: value.mean() for name, value in named.items()}
        yield LossTerm(loss.mean(), "leaps", {**output.metrics, **means})
        yield from self.kl_losses(batch, x0, start.cond)

    def steps(self, batch: Batch) -> tuple[Steps, Steps]:
        """(k, j) of each sample: two different steps drawn uniformly, the earlier first; 0 is the
        first step, from pure noise."""
        count, generator = self.rollout.num_inference_steps, update_generator(batch, STEPS)
        order = draw_rows(
            batch, lambda n: torch.rand((n, count), generator=generator).argsort(1)[:, :2]
        )
        return order.amin(1), order.amax(1)

    def _leaps(
        self, start: RolloutStart, k: Steps, j: Steps
    ) -> tuple[Latents, Latents, tuple[PerSample, PerSample]]:
        """(x0, end of the leap from x_j to x0, distances of both leaps); one call per step, those
        at k and j with gradient."""
        model, x_t, sigmas = self.model, start.noise, to_device(start.sigmas, start.noise.device)
        native = model.path, model.prediction
        trained = {*k.tolist(), *j.tolist()}
        k, j = (to_device(each, x_t.device) for each in (k, j))
        leap_to_j = leap_to_0 = x_t
        to_j = torch.zeros_like(sigmas[k]).to(x_t)
        for index in range(len(sigmas) - 1):
            level, next_level = (sigmas[each].expand(len(x_t)) for each in (index, index + 1))
            at_k, at_j = ((each == index)[:, None, None, None] for each in (k, j))
            # zero, with the gradient of the first leap
            carried = torch.where(at_j, leap_to_j - leap_to_j.detach(), 0.0)
            to_j = torch.where(j == index, distance(leap_to_j, x_t), to_j)
            with torch.set_grad_enabled(index in trained):
                network_input = x_t + self.settings.nested_scale * carried
                pred = predict(model, start.cond, network_input, level)
            leap = linear_step(*native, x_t, pred, level, sigmas[j])
            leap_to_j = torch.where(at_k, leap, leap_to_j)
            leap = linear_step(*native, x_t + carried, pred, level, sigmas[-1:].expand(len(x_t)))
            leap_to_0 = torch.where(at_j, leap, leap_to_0)
            x_t = linear_step(*native, x_t, pred.detach(), level, next_level)
        return x_t, leap_to_0, (to_j, distance(leap_to_0, x_t))


def distance(leap: Latents, sampled: Latents) -> PerSample:
    """Mean absolute distance per latent value between the end of a leap and the sampler's path."""
    return (leap.detach() - sampled).abs().mean((1, 2, 3))
