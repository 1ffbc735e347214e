"""DRaFT (arXiv 2309.17400, algorithm 1): the gradient of the reward through the last K steps of sampling.

The paper: DRaFT-K cuts the chain before its last K steps; DRaFT-LV takes K = 1, noises the sample anew to the last
level n − 1 more times, and adds the gradients of all n last steps for a lower variance. Here: both, for every path and
prediction; the n losses are averaged, so that n leaves their size alone, and come one by one, so that memory is that
of one. Left out: the full chain under checkpointing (AlignProp has it) and the mixing of LoRA scales after training.

What LV estimates: its first loss is that of K = 1. The others are, given the sample x0, independent draws of the last
step at alpha·x0 + sigma·noise; they equal K = 1 in expectation as far as the sampler's own last state is distributed
like that. On a rollout of one step from pure noise this is exact: the n losses are n independent draws of K = 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..config import DRaFTConfig as Settings
from ..config import RolloutConfig as RolloutSettings
from ..diffusion.recovery import inject
from ..diffusion.rng import FRESH_NOISE
from ..diffusion.sampling import RolloutStart, batch_noise, predict_x0, sample, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, Latents, LossTerm
from .objective import build_objective
from .objective_math import hinge


class DRaFT:
    """`losses(batch)` yields the loss of the sample, then one for each time that it is noised anew.

    Raises DirectAlignError for a reward without gradient, or one that ignores the prompt where the form compares two phrasings.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: Settings, rollout: RolloutSettings
    ) -> None:
        assert settings.grad_steps <= rollout.num_inference_steps, (
            settings.grad_steps,
            rollout.num_inference_steps,
        )
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0 with the gradient of its last steps; reward; yield; then noise, denoise, reward and yield again."""
        begun = start_rollout(self.model, self.rollout, batch)
        x0 = sample(self.model, begun.cond, begun.noise, begun.sigmas, self.settings.grad_steps)
        yield self._loss(x0, batch, "sampled")

        x0 = x0.detach()
        for index in range(1, self.settings.lv_samples):
            yield self._loss(self._denoised_again(x0, begun, batch, index), batch, "noised_anew")

    def _denoised_again(
        self, x0: Latents, begun: RolloutStart, batch: Batch, index: int
    ) -> Latents:
        """The sample put back to the last level with the noise of draw `index`, and taken from there by one step with gradient."""
        noise = batch_noise(batch, FRESH_NOISE, tuple(x0.shape), index=index).to(x0)
        sigma = begun.sigmas[-2].expand(len(x0)).to(x0.device)
        x_t = inject(self.model.path, x0, noise, sigma).x_t
        return predict_x0(self.model, begun.cond, x_t, sigma)

    def _loss(self, x0: Latents, batch: Batch, branch: str) -> LossTerm:
        output = self.objective(self.model.decode(x0), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)
        return LossTerm(loss.mean() / self.settings.lv_samples, branch, output.metrics)

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)
