"""Prompt distillation: the model learns to do unasked what its base does when it is asked. Ours.

No reward pulls: at noised rollouts (or real images) the prediction for "a fox" is fitted to the
base's prediction for "Realistic photo. a fox", optionally guided away from the negative phrases or
the empty prompt. It is the baseline for every reward: where the base obeys words, it reaches what
asking reaches, keeps detail and diversity, and does not drift further. Where the base does not
know the words, it does nothing. The reward is measured for the log only. The KL terms of other
methods may be centred on the same target (`kl_to: base_with_phrases`).
"""

from collections.abc import Iterator

import torch

from ..config import AskedConfig, ControlPhrases, PromptDistillationConfig, RolloutConfig
from ..diffusion import recovery, rng, sampling
from ..diffusion.path import expand_like
from ..interfaces import Model, Reward
from ..models.lora import ReferenceModel
from ..types import Batch, Conditioning, Latents, LossTerm, PerSample
from . import objective_math
from .objective import ObjectiveMethod, build_sigma_sampler, select_phrases


class BaseTarget:
    """Predictions of the model before training; call it before a graph is built.

    `asked` None: under the conditioning of the training call. Otherwise under the positive phrases,
    several of a step averaged, with `asked`'s guidance: extrapolated from the prediction under the
    empty prompt or the negative phrases, as in classifier-free guidance (arXiv 2207.12598).
    """

    def __init__(
        self, model: Model, phrases: ControlPhrases, asked: AskedConfig | None = None
    ) -> None:
        self.model, self.phrases, self.asked = model, phrases, asked
        self.base = ReferenceModel(model.denoiser)

    @torch.no_grad()
    def __call__(self, step: int, cond: Conditioning, x_t: Latents, sigma: PerSample) -> Latents:
        """Of update `step`: (b, c, h, w) at x_t and noise levels `sigma` (b,), guided as `cond`."""
        with self.base.active():
            if self.asked is None:
                return sampling.predict(self.model, cond, x_t, sigma)
            step += self.phrases.cycle_start
            positive = self._mean(self._texts(self.phrases.positive, step, cond), cond, x_t, sigma)
            if self.asked.guidance == 1:
                return positive
            texts = [[""] * len(cond.prompts)]
            if self.asked.against == "negative":
                texts = self._texts(self.phrases.negative, step, cond)
            other = self._mean(texts, cond, x_t, sigma)
            extra = torch.where(sigma <= self.asked.guidance_below, self.asked.guidance - 1, 0.0)
            return positive + expand_like(extra, positive) * (positive - other)

    def _texts(self, side: list[str], step: int, cond: Conditioning) -> list[list[str]]:
        """The prompts under each phrase of a step."""
        phrases = select_phrases(side, self.phrases.order, step)
        return [[f"{phrase}. {prompt}" for prompt in cond.prompts] for phrase in phrases]

    def _mean(
        self, texts: list[list[str]], cond: Conditioning, x_t: Latents, sigma: PerSample
    ) -> Latents:
        """Mean prediction over several sets of prompts."""
        guidance = cond.embedded_guidance, cond.cfg_scale, cond.truncate_timestep
        asked = (self.model.encode_prompt(each).guided(*guidance) for each in texts)
        return torch.stack([sampling.predict(self.model, each, x_t, sigma) for each in asked]).mean(
            0
        )


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
        self.sampler = build_sigma_sampler(settings.noise_levels, model)
        self.target = BaseTarget(model, settings.control_phrases, settings.asked)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0; inject noise; predict; compare with the target; yield."""
        model = self.model
        x0, noise, cond = sampling.clean_latents(model, self.settings, self.rollout, batch)
        if noise is None:
            noise = rng.batch_noise(batch, rng.FRESH_NOISE, tuple(x0.shape))
        generator = rng.update_generator(batch, rng.NOISE_LEVEL)
        drawn = rng.draw_rows(batch, lambda n: self.sampler.draw(n, generator))
        sigma = self.sampler.denoise(drawn).sigma_from
        x_t = recovery.inject(model.path, x0, noise.to(x0), sigma).x_t
        sigma = sigma.to(x0.device)
        target = self.target(batch.step, cond, x_t, sigma)
        distance = objective_math.velocity_kl(sampling.predict(model, cond, x_t, sigma), target)
        with torch.no_grad():
            output = self.objective(model.decode(x0), batch)
        lists = {"sigma": sigma, "reward": output.reward, "kl": distance.detach()}
        levels = {name: each.double().cpu().tolist() for name, each in lists.items()}
        metrics = {**output.metrics, "kl": float(distance.detach().mean())}
        yield LossTerm(distance.mean(), "distillation", metrics, levels)
