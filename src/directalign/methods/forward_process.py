"""Samples of an old policy, their advantages, and fresh noise on them: what DiffusionNFT and AWM
share. Neither needs log-probabilities of a sampler, nor the reward's gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..device import to_device, to_like
from ..diffusion import path, recovery, rng, sde
from ..diffusion.sampling import encode, predict
from ..interfaces import Model, Reward
from ..models.lora import ReferenceModel
from ..types import Batch, Conditioning, Latents, LossTerm, Metrics, Noised, PerSample
from . import objective_math
from .objective import ObjectiveMethod, build_sigma_sampler, mean_of_rewarded


@dataclass(frozen=True)
class Samples:
    """b samples of the old policy; `advantage` is within ± `advantage_clip`, 0 for kept prompts."""

    batch: Batch
    cond_rows: list[int]
    x0: Latents
    old: list[Latents]
    """The old policy's prediction at each injection; empty if it is the model itself."""
    reward: PerSample
    advantage: PerSample


class ForwardProcessMethod(ObjectiveMethod):
    """`losses(batch)` yields one loss per injection and slice of b of the b·`group_size` samples.

    `old_decay` 0: the old policy is the model itself.
    """

    def __init__(
        self,
        model: Model,
        reward: Reward,
        settings: config.DiffusionNFTConfig | config.AWMConfig,
        rollout: config.RolloutConfig,
    ) -> None:
        super().__init__(model, reward, settings, rollout, differentiable=False)
        self.sampler = build_sigma_sampler(settings.noise_levels, model, rollout)
        follows = settings.old_decay > 0
        self.old = ReferenceModel(model.denoiser, follows=True) if follows else None
        self.followed = {"step": -1}
        """Last update whose weights the old policy has followed; changed in place, as the old
        weights are, so that a state taken before a failed update fits them."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make samples; for each injection: noise them; predict; weigh by advantage; yield."""
        self._follow(batch.step)
        cond = encode(self.model, batch.prompts, batch.source_images)
        samples, metrics = self._samples(batch, cond)
        count = self.settings.injections * len(samples)
        for index in range(self.settings.injections):
            for each in samples:
                yield self._term(each, cond.rows(each.cond_rows), index, metrics, count)

    def policy_loss(
        self, noised: Noised, pred: Latents, old: Latents, advantage: PerSample
    ) -> tuple[PerSample, dict[str, PerSample]]:
        """The method's loss (b,), with its graph, and what is logged of it."""
        raise NotImplementedError

    def _follow(self, step: int) -> None:
        """Once per update: the old policy follows the weights that the updates before it made."""
        if self.old is not None and step > self.followed["step"]:
            self.old.follow(min(self.settings.old_decay_rise * step, self.settings.old_decay))
            self.followed["step"] = step

    @torch.no_grad()
    def _samples(self, batch: Batch, cond: Conditioning) -> tuple[list[Samples], Metrics]:
        """All that is asked of the old policy, under one exchange of weights, and its rewards."""
        settings, b = self.settings, len(batch.prompts)
        with self.old.active() if self.old is not None else nullcontext():
            parts, places, latents, images = self.sampled(batch, settings.group_size, cond)
            old = [
                [
                    predict(self.model, *self._call(part, cond.rows(at), x0, index)[1])
                    for index in range(settings.injections if self.old is not None else 0)
                ]
                for part, at, x0 in zip(parts, places, latents, strict=True)
            ]
        output = self.objective(torch.cat(images), batch)
        reward = output.reward.to(latents[0].device)
        advantage = sde.group_advantage(reward, settings.group_size, settings.normalise)
        advantage = advantage.clamp(-settings.advantage_clip, settings.advantage_clip)
        spread = sde.center_groups(reward, settings.group_size).square().mean(1).sqrt()
        metrics = {**output.metrics, "group_spread": mean_of_rewarded(spread, batch)}
        rows = zip(parts, places, latents, old, reward.split(b), advantage.split(b), strict=True)
        return [Samples(*each) for each in rows], metrics

    def _call(
        self, batch: Batch, cond: Conditioning, x0: Latents, index: int
    ) -> tuple[Noised, tuple[Conditioning, Latents, PerSample]]:
        """The noised samples of one injection, and the inputs of a prediction at them."""
        noise = to_like(rng.batch_noise(batch, rng.FRESH_NOISE, tuple(x0.shape), index=index), x0)
        generator = rng.update_generator(batch, rng.NOISE_LEVEL, index)
        drawn = rng.draw_rows(batch, lambda n: self.sampler.draw(n, generator))
        sigma_from = self.sampler.denoise(drawn).sigma_from
        noised = recovery.inject(self.model.path, x0, noise, sigma_from)
        guidance = self.rollout.embedded_guidance, 1.0, self.rollout.truncate_timestep
        sigma = to_device(noised.sigma, x0.device)
        return noised, (cond.guided(*guidance), noised.x_t, sigma)

    def _term(
        self, samples: Samples, cond: Conditioning, index: int, metrics: Metrics, count: int
    ) -> LossTerm:
        """One of the `count` losses of an update."""
        batch = samples.batch
        noised, inputs = self._call(batch, cond, samples.x0, index)
        centre = self.centre and self.centre(batch.step, *inputs, batch.own_kept)
        pred = predict(self.model, *inputs)
        old = samples.old[index] if samples.old else pred.detach()
        loss, found = self.policy_loss(noised, pred, old, samples.advantage)
        if batch.kept:
            loss = torch.where(to_device(torch.tensor(batch.own_kept), loss.device), 0.0, loss)
        found["old_distance"] = objective_math.velocity_kl(pred, old)
        levels = {"sigma": noised.sigma, "reward": samples.reward}
        if centre is not None:
            found["kl"] = levels["kl"] = objective_math.velocity_kl(pred, centre)
            loss = loss + self.settings.kl_beta * found["kl"]
        means = {name: each.mean() for name, each in found.items()}
        return LossTerm(loss.mean() / count, "policy", {**metrics, **means}, levels)

    def to_x0(self, pred: Latents, noised: Noised) -> Latents:
        """The clean latents that a prediction at `noised` stands for."""
        model = self.model
        return path.to_x0(model.path, model.prediction, pred, noised.x_t, noised.sigma)

    def own_weights(self) -> Mapping[str, Tensor]:
        return self.old.weights if self.old is not None else {}

    def state_dict(self) -> Mapping[str, Any]:
        return {**super().state_dict(), "followed": self.followed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.followed.update(state["followed"])
