"""ReFL (arXiv 2304.05977, algorithm 1): the reward's gradient through one late sampling step.

The paper: sample without gradient down to a random one of the last ten of forty steps, predict the
clean image from there in one step, and raise its reward through a hinge, beside the pretraining
loss on a second data set. Here: one draw per sample from the last `last_steps` of any rollout, any
reward and form. Left out: the pretraining loss, which needs captioned real images, and the factor
that balances the two losses: of a single loss, AdamW cancels it.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from ..device import to_device
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import predict_x0, sample_trajectory, states_at
from ..types import Batch, LossTerm
from .objective import ObjectiveMethod


class ReFL(ObjectiveMethod):
    """`losses(batch)` yields one loss, with the gradient of one network call."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x_t; predict x0_hat; reward; yield."""
        start, index = self.start(batch), self.trained_step(batch)
        reached = replace(start, sigmas=start.sigmas[: int(index.max()) + 1])
        x_t = states_at(sample_trajectory(self.model, reached), index)

        sigma = to_device(start.sigmas[index], x_t.device)
        x0_hat = predict_x0(self.model, start.cond, x_t, sigma)
        yield self.image_loss(x0_hat, batch, "late_step", sigma)
        yield from self.kl_losses(batch, x0_hat, start.cond)

    def trained_step(self, batch: Batch) -> Int64[Tensor, " b"]:
        """Each sample's step with gradient, uniform over the last `last_steps`."""
        highest, generator = self.settings.last_steps + 1, update_generator(batch, STEPS)
        back = draw_rows(batch, lambda n: torch.randint(1, highest, (n,), generator=generator))
        return self.rollout.num_inference_steps - back
