"""RAFT (arXiv 2304.06767): reward-ranked fine-tuning, which needs no gradient of the reward.

The paper: sample several answers to each prompt from the current model, keep the best one by the
reward, fine-tune on what was kept with the model's own pre-training loss, repeat. Here: the same
for diffusion models, every update with new samples: each prompt keeps the best of its `candidates`
images, and the loss is the squared distance of the prediction from its target (noise − x0 for a
flow; epsilon or v for a DDPM) at the kept image, with fresh noise at drawn levels. The objective
may have any form: with the relative one the images are ranked by pos − neg. The training call is
that of the rollout without classifier-free guidance, as in pre-training. `kl_beta` adds the
velocity-space KL at the same call. Left out: passes over a larger
set of kept images; `rollout.reuse` makes several over those of one update.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..config import RAFTConfig, RolloutConfig
from ..device import to_device, to_like, widest
from ..diffusion import path, recovery, rng
from ..diffusion.sampling import encode, predict
from ..interfaces import Model, Reward
from ..types import Batch, LossTerm
from . import objective_math
from .objective import ObjectiveMethod, build_sigma_sampler, mean_of_rewarded


class RAFT(ObjectiveMethod):
    """`losses(batch)` yields one loss, on the best of each prompt's `candidates` images."""

    def __init__(
        self, model: Model, reward: Reward, settings: RAFTConfig, rollout: RolloutConfig
    ) -> None:
        super().__init__(model, reward, settings, rollout, differentiable=False)
        self.sampler = build_sigma_sampler(settings.noise_levels, model, rollout)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make candidates; keep the best; inject noise; predict; compare with the target; yield."""
        model, rollout = self.model, self.rollout
        made = self.rolled_out(batch, self._best)
        x0, reward, metrics = made["x0"], made["reward"], dict(made["metrics"])
        noise = to_like(rng.batch_noise(batch, rng.FRESH_NOISE, tuple(x0.shape)), x0)
        generator = rng.update_generator(batch, rng.NOISE_LEVEL)
        drawn = rng.draw_rows(batch, lambda n: self.sampler.draw(n, generator))
        noised = recovery.inject(model.path, x0, noise, self.sampler.denoise(drawn).sigma_from)
        target = path.target(model.path, model.prediction, x0, noise, noised.sigma)

        cond = encode(model, batch.prompts, batch.source_images)
        cond = cond.guided(rollout.embedded_guidance, 1.0, rollout.truncate_timestep)
        sigma = to_device(noised.sigma, x0.device)
        centre = self.centre and self.centre(batch.step, cond, noised.x_t, sigma, batch.own_kept)
        pred = predict(model, cond, noised.x_t, sigma)
        loss = ((pred - target) ** 2).mean((1, 2, 3))
        # a reward that is not finite stops the run, as it does where it is a part of the loss
        loss = torch.where(reward.isfinite(), loss, reward.to(loss))
        if batch.kept:
            loss = torch.where(to_device(torch.tensor(batch.own_kept), loss.device), 0.0, loss)
        levels = {"sigma": noised.sigma, "reward": reward}
        if centre is not None:
            kl = objective_math.velocity_kl(pred, centre)
            loss = loss + self.settings.kl_beta * kl
            metrics["kl"], levels["kl"] = kl.mean(), kl
        yield LossTerm(loss.mean(), "best", metrics, levels)

    @torch.no_grad()
    def _best(self, batch: Batch) -> dict[str, Any]:
        """Latents and reward (b,) of the best image of each prompt, and means for the log.

        Candidates are sampled, decoded and scored in slices of b images.
        """
        count, b = self.settings.candidates, len(batch.prompts)
        cond = encode(self.model, batch.prompts, batch.source_images)
        *_, latents, images = self.sampled(batch, count, cond)
        counted = replace(batch, step=batch.step // self.rollout.reuse)
        output, x0 = self.objective(torch.cat(images), counted), torch.cat(latents)
        groups = output.reward.to(x0.device).view(b, count)
        reward, best = groups.max(1)
        rows = torch.arange(b, device=x0.device) * count + best
        named = {"best_reward": reward, "group_spread": groups.std(1, correction=0)}
        wide = {name: each.to(widest(each.device)) for name, each in named.items()}
        means = {name: mean_of_rewarded(each, batch) for name, each in wide.items()}
        return {"x0": x0[rows], "reward": reward, "metrics": {**output.metrics, **means}}
