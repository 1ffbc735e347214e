"""Flow-GRPO (arXiv 2505.05470), DanceGRPO (arXiv 2505.07818): policy gradient of an SDE rollout.

The papers: turn the sampler into an SDE, so that each step is a Gaussian with a log-probability;
the advantage of a sample is its reward against the other samples of its prompt; PPO's clipped
ratio, and in Flow-GRPO a KL to the base model. DanceGRPO starts a prompt's samples from one noise
and trains a random part of the steps. MixGRPO (arXiv 2507.21802) has noise in a window of steps
alone, which are trained and which move to lower noise. Here: all, by settings, and the DDIM step,
which also works on VP paths. The reward can have any form: with the relative one, SRPO's preference
is the advantage. No gradient of the reward is needed, so black boxes work. Left out: advantages
over ranks and clipping of advantages (a group is whole on its rank), splitting a batch of rollouts
into smaller ones for its updates (each takes all samples, and its own steps of them), fewer steps
in training than in sampling (one rollout for both).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..device import to_device, widest
from ..diffusion import sde
from ..diffusion.rng import STEPS, TRANSITION, batch_noise, update_generator
from ..diffusion.sampling import encode, predict, rollout_conditioning, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, Conditioning, DirectAlignError, Latents, LossTerm, Metrics
from .objective import ObjectiveMethod

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollouts:
    """A stochastic rollout of n samples, neighbours sharing a prompt; saved for a resume."""

    step: int
    prompts: tuple[str, ...]
    sigmas: Tensor
    states: list[Tensor]
    """One (n, c, h, w) per level: [0] is the noise, [-1] is x0."""
    log_probs: list[Tensor]
    """(n,) of each step that can be trained: from `first` on."""
    reward: Tensor
    advantage: Tensor
    metrics: Metrics
    kept: tuple[bool, ...] = ()
    sources: Tensor | None = None
    """The images that the prompts edit."""
    first: int = 0


class FlowGRPO(ObjectiveMethod):
    """`losses(batch)` yields one loss per trained step; each prompt has `group_size` samples.

    With `updates_per_rollout` > 1 the following updates reuse the samples and skip their own
    prompts; cycling control phrases, and the anchor's first updates, then count rollouts. Raises
    DirectAlignError for more trained steps than can be trained, and for an SDE of rectified flow on
    another path.
    """

    def __init__(
        self,
        model: Model,
        reward: Reward,
        settings: config.FlowGRPOConfig,
        rollout: config.RolloutConfig,
    ) -> None:
        self.check(settings, rollout, model.path)
        super().__init__(model, reward, settings, rollout, differentiable=False)
        self.warned = False

    @staticmethod
    def check(settings: config.FlowGRPOConfig, rollout: config.RolloutConfig, path: str) -> None:
        """Refuse settings that the rollout or the noise path cannot satisfy.

        The last step of a rollout adds no noise and has no probability.
        """
        trainable = rollout.num_inference_steps - 1
        for key, steps in (
            ("trained_steps", settings.trained_steps),
            ("sde_window", settings.sde_window),
        ):
            if (steps or 1) > trainable:
                raise DirectAlignError(
                    f"method.{key}: {steps or 'all'} of the {trainable} steps that "
                    f"rollout.num_inference_steps: {rollout.num_inference_steps} leaves to train "
                    "(its last adds no noise): lower the one or raise the other"
                )
        if settings.sde != "ddim" and path != "flow":
            raise DirectAlignError(
                f"method.sde: {settings.sde} is a step of rectified flow, and this model follows a "
                "DDPM schedule: set method.sde: ddim"
            )

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0 or reuse a rollout; for each trained step: predict, weigh by advantage, yield."""
        made: Rollouts = self.rollouts.pop(batch.offset, None) or self._roll_out(batch)
        if batch.step - made.step + 1 < self.settings.updates_per_rollout:  # for the next update
            self.rollouts[batch.offset] = made
        cond = rollout_conditioning(encode(self.model, made.prompts, made.sources), self.rollout)
        trained = self._trained_steps(made, batch)
        for index in trained:
            yield self._step_loss(made, cond, index, len(trained))

    def _step_loss(self, made: Rollouts, cond: Conditioning, index: int, count: int) -> LossTerm:
        """Clipped ratio and KL of one step of all samples; `count` steps share the batch's loss."""
        settings, x_t = self.settings, made.states[index]
        levels, centre = (made.sigmas[index], made.sigmas[index + 1]), None
        if self.centre is not None:
            rollout = made.step // settings.updates_per_rollout
            centre = self.centre(rollout, cond, x_t, levels[0].expand(len(x_t)), made.kept)
            centre = self._transition_from(centre, x_t, *levels)
        step = self._transition(x_t, cond, *levels)

        before = made.log_probs[index - made.first]
        ratio = (sde.log_prob(step, made.states[index + 1]) - before).exp()
        loss = sde.clipped_loss(ratio, made.advantage, settings.clip_range)
        metrics = {
            **made.metrics,
            "ratio": _mean(ratio),
            "clip_fraction": _mean((ratio - 1).abs() > settings.clip_range),
        }
        if centre is not None:
            kl = sde.kl_divergence(step, centre)
            if settings.kl_form == "released":
                kl = kl * (levels[0] - levels[1]).to(kl)
            loss = loss + settings.kl_beta * kl
            metrics["kl"] = _mean(kl)
        logged = {"sigma": levels[0].expand(len(x_t)), "reward": made.reward}
        return LossTerm(loss.mean() / count, "policy", metrics, logged)

    @torch.no_grad()
    def _roll_out(self, batch: Batch) -> Rollouts:
        size = self.settings.group_size
        batch = batch.repeated(size)
        start = start_rollout(self.model, self.rollout, batch)
        noise = start.noise
        if self.settings.same_noise:
            noise = noise[::size].repeat_interleave(size, 0)
        sigmas, states, log_probs = to_device(start.sigmas, noise.device), [noise], []
        rollout = replace(batch, step=batch.step // self.settings.updates_per_rollout)
        window = self._window(rollout.step, len(sigmas) - 2)
        for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas)):
            noisy = index in window
            step = self._transition(states[-1], start.cond, sigma_from, sigma_to, noisy)
            fresh = batch_noise(batch, TRANSITION, tuple(noise.shape), index=index)
            states.append(step.sample(fresh))
            if noisy:
                log_probs.append(sde.log_prob(step, states[-1]))
        output = self.objective(self.seen(states[-1]), rollout)
        reward = output.reward.to(noise.device)
        advantage = sde.group_advantage(reward, size, self.settings.normalise)
        if batch.kept:
            kept = to_device(torch.tensor(batch.own_kept), advantage.device)
            advantage = torch.where(kept, 0.0, advantage)
        spread = _mean(sde.center_groups(reward, size).square().mean(1).sqrt())
        # asked as "any differs": on the fake tensors of a memory estimate every answer is true
        differs = (reward.view(-1, size) != reward.view(-1, size)[:, :1]).any()
        if not (self.warned or bool(differs)):
            self.warned = True
            logger.warning("all samples of a prompt have one reward: nothing is learned from them")
        metrics = {**output.metrics, "group_spread": spread}
        samples = sigmas, states, log_probs, reward, advantage
        about = metrics, batch.own_kept, batch.source_images, window.start
        return Rollouts(batch.step, batch.prompts, *samples, *about)

    def _window(self, rollout: int, trainable: int) -> range:
        """The steps with noise: all but the last, or those of a window in its place."""
        size = self.settings.sde_window or trainable
        first = rollout // self.settings.window_every % (trainable - size + 1)
        return range(first, first + size)

    def _trained_steps(self, made: Rollouts, batch: Batch) -> list[int]:
        """The steps that this update trains: the next ones in the rollout's random order."""
        trainable = len(made.log_probs)
        count = self.settings.trained_steps or trainable
        generator = update_generator(replace(batch, step=made.step), STEPS)
        order = torch.randperm(trainable, generator=generator).tolist()
        first = (batch.step - made.step) * count
        return [made.first + order[(first + index) % trainable] for index in range(count)]

    def _transition(
        self,
        x_t: Latents,
        cond: Conditioning,
        sigma_from: Tensor,
        sigma_to: Tensor,
        noisy: bool = True,
    ) -> sde.Transition:
        pred = predict(self.model, cond, x_t, sigma_from.expand(len(x_t)))
        return self._transition_from(pred, x_t, sigma_from, sigma_to, noisy)

    def _transition_from(
        self, pred: Latents, x_t: Latents, sigma_from: Tensor, sigma_to: Tensor, noisy: bool = True
    ) -> sde.Transition:
        model, settings = self.model, self.settings
        levels = sigma_from.expand(len(x_t)), sigma_to.expand(len(x_t))
        native = settings.sde, model.path, model.prediction
        return sde.transition(*native, pred, x_t, *levels, settings.noise_level * noisy)

    def state_dict(self) -> Mapping[str, Any]:
        stored = {
            offset: {each.name: getattr(made, each.name) for each in fields(made)}
            for offset, made in self.rollouts.items()
        }
        return {**super().state_dict(), "rollouts": stored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        device = next(self.model.denoiser.parameters()).device
        for offset, made in self.rollouts.items():
            moved = {name: _to_device(value, device) for name, value in made.items()}
            self.rollouts[offset] = Rollouts(**moved)


def _to_device(value: Any, device: torch.device) -> Any:
    """Checkpoints are read on the CPU."""
    if isinstance(value, list):
        return [_to_device(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _mean(values: Tensor) -> Tensor:
    return values.to(widest(values.device)).mean()
