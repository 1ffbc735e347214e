"""AlignProp (arXiv 2310.03739): the reward's gradient through the chain, to a random depth.

The paper: back-propagate through the sampling chain, recomputing the activations of every step, and
truncate the gradient after a number of last steps drawn uniformly, so that early steps are reached
without the collapse of a full chain. Here: the same, one depth per sample, with one step as the
unit of recomputation: memory is that of one step plus the states, and every differentiated step of
the batch's deepest sample costs one more forward call. Left out: nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import AlignPropConfig, RolloutConfig
from ..device import to_device
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import keep_gradient, sample, sampling_step
from ..interfaces import Model, Reward
from ..types import Batch, LossTerm
from .objective import ObjectiveMethod


class AlignProp(ObjectiveMethod):
    """`losses(batch)` yields one loss; its metrics name the mean depth, `grad_steps`."""

    def __init__(
        self, model: Model, reward: Reward, settings: AlignPropConfig, rollout: RolloutConfig
    ) -> None:
        super().__init__(model, reward, settings, rollout)
        self.max_grad_steps = settings.max_grad_steps or rollout.num_inference_steps

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Sample; run the last steps with gradient; reward; yield."""
        start, depth = self.start(batch), self.depth(batch)
        deepest = int(depth.max())
        x0 = sample(self.model, start.cond, start.noise, start.sigmas[:-deepest])
        for index, sigmas in enumerate(
            pairwise(to_device(start.sigmas[-deepest - 1 :], x0.device))
        ):
            x0 = keep_gradient(x0, depth > deepest - index)
            # a step only stores its input and runs again in the backward pass
            args = (self.model, start.cond, x0, *sigmas)
            x0 = checkpoint(sampling_step, *args, use_reentrant=False)
        loss = self.image_loss(x0, batch, "chain")
        grad_steps = float(depth.double().mean())
        yield replace(loss, metrics={**loss.metrics, "grad_steps": grad_steps})
        yield from self.kl_losses(batch, x0, start.cond)

    def depth(self, batch: Batch) -> Int64[Tensor, " b"]:
        """Each sample's number of last steps with gradient, uniform over 1, ...,
        `max_grad_steps`."""
        highest, generator = self.max_grad_steps + 1, update_generator(batch, STEPS)
        return draw_rows(batch, lambda n: torch.randint(1, highest, (n,), generator=generator))
