"""FlowBP-Sparse (arXiv 2606.11075): the gradient of the sampled image to a few repeated steps.

The paper: sample without gradient and store the states; call the network again, with gradient, at K
of them; write x0 as the sum of all steps, with new predictions in these K and cached ones
elsewhere, pinned to the sampled x0. Later steps are drawn more often, and the gradient is scaled by
the length of all steps over that of the drawn ones. Values are those of its released FLUX.1
configuration (K 3, late bias 2, scale 1). Here: the same for every path and prediction type, a
step's length being the size of d x0 / d pred along the chain (on a flow |sigma_to − sigma_from|,
the paper's). Left out: the variants Bridge and Lagrange.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..device import to_device
from ..diffusion.path import expand_like
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import (
    chain_coefficients,
    predict,
    sample_trajectory,
    start_rollout,
    states_at,
)
from ..types import Batch, LossTerm
from .objective import ObjectiveMethod


class FlowBP(ObjectiveMethod):
    """`losses(batch)` yields one loss, with the gradient of K calls beside those of the rollout."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0 and all states before it; predict again at the drawn ones; reward; yield."""
        start, trained = start_rollout(self.model, self.rollout, batch), self.steps(batch)
        states = sample_trajectory(self.model, start)

        x0, weights = states[-1], self.weights(start.sigmas, trained)
        for index, weight in zip(trained.T, weights.T, strict=True):
            # x0 keeps its value and gains the gradient of each prediction
            x_t, sigma = states_at(states, index), to_device(start.sigmas[index], x0.device)
            pred = predict(self.model, start.cond, x_t, sigma)
            x0 = x0 + expand_like(weight, x0) * (pred - pred.detach())
        yield self.image_loss(x0, batch, "repeated_steps")
        yield from self.kl_losses(batch, x0, start.cond)

    def steps(self, batch: Batch) -> Int64[Tensor, "b k"]:
        """K different steps of each sample, rising; step i (0: from pure noise) has weight (i +
        1)^late_bias."""
        count = torch.arange(1, self.rollout.num_inference_steps + 1, dtype=torch.float64)
        weights, generator = count**self.settings.late_bias, update_generator(batch, STEPS)
        k = self.settings.trained_steps
        drawn = draw_rows(
            batch, lambda n: torch.multinomial(weights.expand(n, -1), k, generator=generator)
        )
        return drawn.sort(1).values

    def weights(
        self, sigmas: Float[Tensor, " levels"], trained: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        """d x0 / d pred of each trained step, rescaled."""
        each = chain_coefficients(self.model.path, self.model.prediction, sigmas)
        drawn = each[trained]
        scale = each.abs().sum() / drawn.abs().sum(1, keepdim=True)
        return drawn * (1 + self.settings.rescale * (scale - 1))
