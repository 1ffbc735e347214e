"""AlignProp (arXiv 2310.03739): the gradient of the reward through the whole chain, truncated at a
random depth.

The paper: back-propagate through the sampling chain, recomputing the activations of every step, and
truncate the gradient after a number of last steps drawn uniformly, so that early steps are reached
without the collapse of a full chain. Here: the same, one depth for the whole batch, with one step
as the unit of recomputation: memory is that of one step plus the states, and every differentiated
step costs one more forward call. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..config import AlignPropConfig, RolloutConfig
from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import sample, sampling_step, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, LossTerm
from .objective import build_objective
from .objective_math import hinge


class AlignProp:
    """`losses(batch)` yields one loss; its metrics name the depth, `grad_steps`.

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
        start, grad_steps = start_rollout(self.model, self.rollout, batch), self.depth(batch)
        x0 = sample(self.model, start.cond, start.noise, start.sigmas[:-grad_steps])
        for sigmas in pairwise(start.sigmas[-grad_steps - 1 :].to(x0.device)):
            # a step stores its input alone and runs again in the backward pass
            args = (self.model, start.cond, x0, *sigmas)
            x0 = checkpoint(sampling_step, *args, use_reentrant=False)

        output = self.objective(self.model.decode(x0), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)

        yield LossTerm(loss.mean(), "chain", {**output.metrics, "grad_steps": float(grad_steps)})

    def depth(self, batch: Batch) -> int:
        """Number of last steps with gradient: uniform over 1, ..., `max_grad_steps`."""
        generator = update_generator(batch, STEPS)
        return int(torch.randint(1, self.max_grad_steps + 1, (), generator=generator))

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)
