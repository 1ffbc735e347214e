"""Prompt distillation: the model learns to do unasked what its base does when it is asked. Ours.

No reward pulls: at noised rollouts (or real images) the prediction for "a fox" is fitted to the
base's prediction for "Realistic photo. a fox", optionally guided away from the negative phrases or
the empty prompt. It is the baseline for every reward: where the base obeys words, it can reach what
asking reaches; where it does not know the words, it does nothing. The reward is measured for the
log only. The KL terms of other methods may be centred on the same target (`kl_to:
base_with_phrases`).
"""

from collections.abc import Iterator

import torch

from ..config import PromptDistillationConfig, RolloutConfig
from ..device import to_device, to_like
from ..diffusion import recovery, rng, sampling
from ..interfaces import Model, Reward
from ..types import Batch, LossTerm
from . import objective_math
from .base_target import BaseTarget
from .objective import ObjectiveMethod, build_sigma_sampler


class PromptDistillation(ObjectiveMethod):
    """`losses(batch)` yields one loss: the squared distance to the base's asked prediction."""

    def __init__(
        self,
        model: Model,
        reward: Reward,
        settings: PromptDistillationConfig,
        rollout: RolloutConfig,
    ) -> None:
        super().__init__(model, reward, settings, rollout, differentiable=False)
        self.sampler = build_sigma_sampler(settings.noise_levels, model, rollout)
        self.target = BaseTarget(model, settings.control_phrases, settings.asked)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0; inject noise; predict; compare with the target; yield."""
        model = self.model
        x0, noise, cond = self.clean_latents(batch)
        if noise is None:
            scope = "per_rank" if self.settings.noise.scope == "per_rank" else "shared"
            noise = rng.batch_noise(batch, rng.FRESH_NOISE, tuple(x0.shape), scope)
        generator = rng.update_generator(batch, rng.NOISE_LEVEL)
        drawn = rng.draw_rows(batch, lambda n: self.sampler.draw(n, generator))
        sigma = self.sampler.denoise(drawn).sigma_from
        x_t = recovery.inject(model.path, x0, to_like(noise, x0), sigma).x_t
        sigma = to_device(sigma, x0.device)
        target = self.target(batch.step, cond, x_t, sigma, batch.own_kept)
        distance = objective_math.velocity_kl(sampling.predict(model, cond, x_t, sigma), target)
        with torch.no_grad():
            output = self.objective(self.seen(x0), batch)
        levels = {"sigma": sigma, "reward": output.reward, "kl": distance}
        metrics = {**output.metrics, "kl": distance.mean()}
        yield LossTerm(distance.mean(), "distillation", metrics, levels)
