"""AlignProp (arXiv 2310.03739): the gradient of the reward through the whole chain, truncated at a
random depth.

The paper: back-propagate through the sampling chain, recomputing the activations of every step, and
truncate the gradient after a number of last steps drawn uniformly, so that early steps are reached
without the collapse of a full chain. Here: the same, one depth per sample, with one step as the
unit of recomputation: memory is that of one step plus the states, and every differentiated step of
the batch's deepest sample costs one more forward call. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import AlignPropConfig, RolloutConfig
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import keep_gradient, sample, sampling_step, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, LossTerm
from .objective import build_objective
from .objective_math import hinge


class AlignProp:
    """`losses(batch)` yields one loss; its metrics name the mean depth, `grad_steps`.

    Raises DirectAlignError for a reward without gradient, and for one that ignores the prompt where
    the form compares two phrasings.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: AlignPropConfig, rollout: RolloutConfig
    ) -> None:
        self.max_grad_steps = settings.max_grad_steps or rollout.num_inference_steps
        steps = self.max_grad_steps, rollout.num_inference_steps
        assert steps[0] <= steps[1], steps
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Sample to where the gradient begins; then the remaining steps with gradient; reward;
        yield."""
        start, depth = start_rollout(self.model, self.rollout, batch), self.depth(batch)
        deepest = int(depth.max())
        x0 = sample(self.model, start.cond, start.noise, start.sigmas[:-deepest])
        for index, sigmas in enumerate(pairwise(start.sigmas[-deepest - 1 :].to(x0.device))):
            x0 = keep_gradient(x0, depth > deepest - index)
            # a step stores its input and runs again in the backward pass
            args = (self.model, start.cond, x0, *sigmas)
            x0 = checkpoint(sampling_step, *args, use_reentrant=False)

        output = self.objective(self.model.decode(x0), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)

        grad_steps = float(depth.double().mean())
        yield LossTerm(loss.mean(), "chain", {**output.metrics, "grad_steps": grad_steps})

    def depth(self, batch: Batch) -> Int64[Tensor, " b"]:
        """Each sample's number of last steps with gradient: uniform over 1, ...,
        `max_grad_steps`."""
        highest, generator = self.max_grad_steps + 1, update_generator(batch, STEPS)
        return draw_rows(batch, lambda n: torch.randint(1, highest, (n,), generator=generator))

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)
