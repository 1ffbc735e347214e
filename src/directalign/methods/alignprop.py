"""AlignProp (arXiv 2310.03739): the gradient of the reward through the whole chain, cut at a random depth.

The paper: back-propagate through the sampling chain with the activations of every step recomputed, and cut the
gradient after a number of last steps drawn uniformly, so that early steps are reached without the collapse that a
full chain brings. Here: the same, one depth for the whole batch, with the step as the unit of recomputation: memory is
that of one step plus the states, and every differentiated step costs one more forward call. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import AlignPropConfig as Settings
from ..config import RolloutConfig as RolloutSettings
from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import sample, sampling_step, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, Conditioning, Latents, LossTerm
from .objective import build_objective
from .objective_math import hinge


class AlignProp:
    """`losses(batch)` yields one loss; its metrics name the depth, `grad_steps`.

    Raises DirectAlignError for a reward without gradient, or one that ignores the prompt where the form compares two phrasings.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: Settings, rollout: RolloutSettings
    ) -> None:
        self.max_grad_steps = settings.max_grad_steps or rollout.num_inference_steps
        assert self.max_grad_steps <= rollout.num_inference_steps, (
            self.max_grad_steps,
            rollout.num_inference_steps,
        )
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make the state where the gradient begins; predict the rest of the way to x0; reward; yield."""
        begun, grad_steps = start_rollout(self.model, self.rollout, batch), self.depth(batch)
        x_t = sample(self.model, begun.cond, begun.noise, begun.sigmas[:-grad_steps])

        x0 = self._recomputed(begun.cond, x_t, begun.sigmas[-grad_steps - 1 :])

        output = self.objective(self.model.decode(x0), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)

        yield LossTerm(loss.mean(), "chain", {**output.metrics, "grad_steps": float(grad_steps)})

    def depth(self, batch: Batch) -> int:
        """How many last steps keep their gradient: uniform over 1, ..., `max_grad_steps`."""
        return int(
            torch.randint(1, self.max_grad_steps + 1, (), generator=update_generator(batch, STEPS))
        )

    def _recomputed(
        self, cond: Conditioning, x_t: Latents, sigmas: Float[Tensor, " levels"]
    ) -> Latents:
        """The rest of the rollout with gradient; a step keeps its input alone, and runs again in the backward pass."""
        for sigma_from, sigma_to in pairwise(sigmas.to(x_t.device)):
            levels = sigma_from.expand(len(x_t)), sigma_to.expand(len(x_t))
            x_t = checkpoint(sampling_step, self.model, cond, x_t, *levels, use_reentrant=False)
        return x_t

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)
