"""ReFL (ImageReward, arXiv 2304.05977, algorithm 1): the gradient of the reward through one late
sampling step.

The paper: sample without gradient down to a random one of the last ten of forty steps, predict the
clean image from there in one step, and raise its reward through a hinge, beside the pretraining
loss on a second data set. Here: one draw per sample from the last `last_steps` of any rollout, any
reward and form. Left out: the pretraining loss, which needs captioned real images, and
the factor that balances the two losses: alone, AdamW cancels it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..config import ReFLConfig, RolloutConfig
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import predict_x0, sample_trajectory, start_rollout, states_at
from ..interfaces import Model, Reward
from ..types import Batch, LossTerm
from .objective import build_objective
from .objective_math import hinge


class ReFL:
    """`losses(batch)` yields one loss, with the gradient of one network call.

    Raises DirectAlignError for a reward without gradient, and for one that ignores the prompt where
    the form compares two phrasings.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: ReFLConfig, rollout: RolloutConfig
    ) -> None:
        steps = settings.last_steps, rollout.num_inference_steps
        assert steps[0] <= steps[1], steps
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x_t; predict x0_hat; reward; yield."""
        start, index = start_rollout(self.model, self.rollout, batch), self.trained_step(batch)
        reached = replace(start, sigmas=start.sigmas[: int(index.max()) + 1])
        x_t = states_at(sample_trajectory(self.model, reached), index)

        sigma = start.sigmas[index].to(x_t.device)
        x0_hat = predict_x0(self.model, start.cond, x_t, sigma)

        output = self.objective(self.model.decode(x0_hat), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)

        levels = {"sigma": sigma, "reward": output.reward}
        lists = {name: value.detach().double().tolist() for name, value in levels.items()}
        yield LossTerm(loss.mean(), "late_step", output.metrics, lists)

    def trained_step(self, batch: Batch) -> Int64[Tensor, " b"]:
        """Each sample's step with gradient, uniform over the last `last_steps`; 0 is the first
        step, from pure noise."""
        highest, generator = self.settings.last_steps + 1, update_generator(batch, STEPS)
        back = draw_rows(batch, lambda n: torch.randint(1, highest, (n,), generator=generator))
        return self.rollout.num_inference_steps - back

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)
