"""ReFL (arXiv 2304.05977, algorithm 1): the reward's gradient through one late sampling step.

The paper: sample without gradient down to a random one of the last ten of forty steps, predict the
clean image from there in one step, and raise its reward through a hinge, beside the pretraining
loss on a second data set. Here: one draw for the whole batch from the last `last_steps` of any
rollout, any reward and form. Left out: the pretraining loss, which needs captioned real images, and
the factor that balances the two losses: of a single loss, AdamW cancels it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import predict_x0, sample, start_rollout
from ..types import Batch, LossTerm
from .objective import ObjectiveMethod


class ReFL(ObjectiveMethod):
    """`losses(batch)` yields one loss, with the gradient of one network call."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x_t; predict x0_hat; reward; yield."""
        start, index = start_rollout(self.model, self.rollout, batch), self.trained_step(batch)
        x_t = sample(self.model, start.cond, start.noise, start.sigmas[: index + 1])

        sigma = start.sigmas[index].expand(len(x_t)).to(x_t.device)
        x0_hat = predict_x0(self.model, start.cond, x_t, sigma)
        yield self.image_loss(x0_hat, batch, "late_step", sigma)

    def trained_step(self, batch: Batch) -> int:
        """Index of the step with gradient, uniform over the last `last_steps`."""
        generator = update_generator(batch, STEPS)
        back = torch.randint(1, self.settings.last_steps + 1, (), generator=generator)
        return self.rollout.num_inference_steps - int(back)
