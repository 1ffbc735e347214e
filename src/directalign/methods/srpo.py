"""Direct-Align and SRPO (arXiv 2509.06942): known noise, one network call, a relative reward.

The paper: recover x0 from any noise level with the *injected* noise, and reward the difference of
scores under two control phrases, on a denoise and an inversion branch that end at the same noise
level. Here: the same step for every path and prediction type. `form` chooses plain Direct-Align
(absolute), SRPO (relative), or our anchored reward, which keeps the score of the unchanged prompt
near its start and needs no inversion branch. `kl_beta` adds a velocity-space KL to the base model,
plain or asked with the positive phrases, at the same call or, by `kl_noise_levels`, in its own.
The released trainer's values are the presets. Left out: the released second Qwen-Image injection is
never longer than its first.
"""

from collections.abc import Iterator

import torch

from ..config import GridNoiseLevels, RolloutConfig, RolloutNoiseLevels, SRPOConfig
from ..device import to_device, to_like
from ..diffusion import noise_levels, recovery, rng, sampling
from ..diffusion.path import expand_like
from ..interfaces import Model, Reward
from ..types import Batch, Conditioning, DirectAlignError, Latents, LossTerm
from . import objective_math
from .objective import ObjectiveMethod, build_sigma_sampler


class SRPO(ObjectiveMethod):
    """`losses(batch)` yields one loss per injection and branch; their sum is the mean over both."""

    def __init__(
        self, model: Model, reward: Reward, settings: SRPOConfig, rollout: RolloutConfig
    ) -> None:
        super().__init__(model, reward, settings, rollout)
        self.sampler = build_sigma_sampler(settings.noise_levels, model, rollout)
        both = settings.branches == "both"
        self.branches = ("denoise", "inversion") if both else (settings.branches,)

    @staticmethod
    def check(settings: SRPOConfig, rollout: RolloutConfig, path: str) -> None:
        """Refuse noise levels that are an empty range, start at pure noise other than the rollout's
        own first step, or have no second branch."""
        levels = settings.noise_levels
        if isinstance(levels, GridNoiseLevels):
            noise_levels.GridSampler(**levels.model_dump(exclude={"kind"}))
            if levels.first == 0:
                raise DirectAlignError(
                    "method.noise_levels.first: 0 is pure noise, which contains nothing of the "
                    "image; give 1 or more"
                )
        elif isinstance(levels, RolloutNoiseLevels):
            steps = rollout.training_steps or rollout.num_inference_steps
            noise_levels.RolloutSampler(torch.linspace(1, 0, steps + 1), levels.first, levels.last)
            if settings.branches != "denoise":
                raise DirectAlignError(
                    f"method.branches: {settings.branches}, and noise_levels of kind rollout only "
                    "step down: set branches: denoise"
                )
        elif not levels.sigma_low < levels.sigma_high:
            raise DirectAlignError(
                f"method.noise_levels: sigma_low {levels.sigma_low} is not below sigma_high "
                f"{levels.sigma_high}; swap or change them"
            )

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0; then for each injection and branch: inject, predict, recover, reward, yield."""
        x0, rollout_noise, cond = self.clean_latents(batch)
        fresh_scope = "per_rank" if self.settings.noise.scope == "per_rank" else "shared"
        for index in range(self.settings.injections):
            noise = rollout_noise
            if noise is None:
                shape = tuple(x0.shape)
                noise = rng.batch_noise(batch, rng.FRESH_NOISE, shape, fresh_scope, index)
            generator = rng.update_generator(batch, rng.NOISE_LEVEL, index)
            target = rng.draw_rows(batch, lambda n, g=generator: self.sampler.draw(n, g))
            for branch in self.branches:
                step = getattr(self.sampler, branch)(target)
                yield self._branch(batch, self.trained(cond), x0, to_like(noise, x0), step, branch)
        if self.settings.kl_noise_levels is not None:
            yield from self.kl_losses(batch, x0, self.trained(cond))

    def _branch(
        self,
        batch: Batch,
        cond: Conditioning,
        x0: Latents,
        noise: Latents,
        step: noise_levels.NoiseStep,
        branch: str,
    ) -> LossTerm:
        model, settings = self.model, self.settings
        noised = recovery.inject(model.path, x0, noise, step.sigma_from)
        sigma = to_device(step.sigma_from, x0.device)
        centre = None
        if self.centre is not None and settings.kl_noise_levels is None:
            centre = self.centre(batch.step, cond, noised.x_t, sigma, batch.own_kept)
        pred = sampling.predict(model, cond, noised.x_t, sigma)
        recovered = recovery.recover(model.path, model.prediction, noised, pred, step.sigma_to)

        ramps = settings.denoise if branch == "denoise" else settings.inversion
        k_pos, k_neg = (ramp.at(step.position) for ramp in (ramps.k_pos, ramps.k_neg))
        output = self.objective(self.seen(recovered.x0), batch, k_pos, k_neg)
        direction = recovery.direction(recovered.gain)
        loss = objective_math.hinge(output.reward, direction, settings.margin)
        if settings.discount_shift is not None:
            discount = objective_math.discount(step.discount_position, settings.discount_shift)
            loss = loss * to_like(discount, loss)

        error = expand_like(recovered.gain, noised.x0) * recovered.residual
        metrics = dict(output.metrics)
        levels = {
            "sigma": step.sigma_from,
            "gain": recovered.gain,
            "reward": output.reward,
            "recovery_error": error.square().mean((1, 2, 3)).sqrt(),
        }
        if centre is not None:
            kl = objective_math.velocity_kl(pred, centre)
            loss = loss + settings.kl_beta * kl.to(loss)
            metrics["kl"], levels["kl"] = kl.mean(), kl
        share = 1 / (settings.injections * len(self.branches))
        return LossTerm(loss.mean() * share, branch, metrics, levels)
