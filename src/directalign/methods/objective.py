"""The objective of all methods: a reward model, a form and control phrases, one reward per image.

`build_objective` makes it, for a single reward or for a mixture. `ObjectiveMethod` is the base of
all methods, which differ only in how its gradient reaches the network.

A mixture evaluates every member in its own form and phrases, with its own anchor, divides each
result by its running standard deviation, and returns the weighted sum minus a penalty on
disagreement. With `gradient_normalization` the members' gradients with respect to the image are
first scaled to the same length. Metrics per member: `reward_<label>` and its scores in its own
units, `share_<label>` its part of the mixed reward, `gradient_<label>` its gradient norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import config
from ..device import to_device, to_like, widest
from ..diffusion import noise_levels, rng
from ..diffusion.recovery import inject
from ..diffusion.sampling import (
    RolloutStart,
    encode,
    image_size,
    predict,
    sample_rollout,
    start_rollout,
    training_sigmas,
)
from ..interfaces import SINGLE_PROCESS, Model, ProcessGroup, Reward
from ..models.block_cache import block_cache
from ..models.rollout_lora import RolloutLoRA
from ..rewards.common import image_features, reward_input, score_all
from ..rewards.mixture import MixReward
from ..types import (
    Batch,
    Conditioning,
    DirectAlignError,
    Images,
    Latents,
    LossTerm,
    Metrics,
    PerSample,
    Sources,
)
from . import objective_math
from .base_target import BaseTarget, select_phrases
from .objective_math import Ramp, Reference, RunningStats

KL_LEVELS = config.UniformNoiseLevels(sigma_low=0.02)
"""Noise levels of the KL term of methods without an injected call."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """`reward` (b,) to maximise, with its gradient, and means of scores and rewards for the log."""

    reward: PerSample
    metrics: Metrics


def build_objective(
    reward: Reward, settings: config.ObjectiveConfig, differentiable: bool = True
) -> RewardObjective | MixedObjective:
    """The objective of a reward; `differentiable`: the method needs the reward's gradient.

    Raises DirectAlignError for a reward without a gradient where one is needed, and for one that
    ignores control phrases where the form compares two; errors of a mixture name the member.
    """
    method = str(getattr(settings, "name", ""))
    if not isinstance(reward, MixReward):
        if differentiable:
            require_gradient(reward, method)
        return RewardObjective(reward, settings)
    for index, member in enumerate(reward.members):
        if differentiable:
            require_gradient(member.reward, method, f"reward.members.{index}.reward")
    if not differentiable:
        require_no_normalization(reward.settings, method)
    every = getattr(settings, "keep_every", None)
    if every is not None:
        raise DirectAlignError(
            f"method.keep_every: {every} is not supported with reward.name: mix: "
            "remove it, or use a single reward"
        )
    return MixedObjective(reward, settings)


class ObjectiveMethod:
    """Base of all methods: model, settings, rollout, and the objective, whose state is saved.

    Raises DirectAlignError for a reward that does not fit, see `build_objective`.
    """

    def __init__(
        self,
        model: Model,
        reward: Reward,
        settings: Any,
        rollout: config.RolloutConfig,
        differentiable: bool = True,
    ) -> None:
        self.model, self.settings, self.rollout = model, settings, rollout
        self.seen = partial(reward_input, reward, model)
        self.objective = build_objective(reward, settings, differentiable)
        given = rollout.lora
        self.rollout_lora = RolloutLoRA(given, model) if given is not None else None
        self.rollouts = dict[int, Any]()
        """By offset of the batch: what updates with `rollout.reuse` still need of a rollout."""
        self.centre = None
        if isinstance(settings, config.KLConfig) and settings.kl_beta > 0:
            self.centre = BaseTarget(model, settings.control_phrases, settings.kl_asked)

    def rolled_out(
        self, batch: Batch, make: Callable[[Batch], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """What `make` returns for the batch of the update that makes the rollout: this one, or one
        of the `rollout.reuse` - 1 before it. Tensors, numbers and strings, saved for a resume."""
        first, reuse = batch.step if batch.rollout is None else batch.rollout, self.rollout.reuse
        made = self.rollouts.pop(batch.offset, None)
        if made is None or made["step"] != first:
            made = {"step": first, **make(replace(batch, step=first))}
        if batch.step + 1 < first + reuse:
            self.rollouts[batch.offset] = made
        device = next(self.model.denoiser.parameters()).device  # checkpoints are read on the CPU
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in made.items()}

    @torch.no_grad()
    def clean_latents(self, batch: Batch) -> tuple[Latents, Latents | None, Conditioning]:
        """x0, the noise to inject (None: fresh noise), the conditioning of the training call."""
        settings, cond = self.settings, None
        call = settings.embedded_guidance, settings.cfg_scale, settings.truncate_timestep
        if batch.images is not None:
            cond = encode(self.model, batch.prompts, batch.source_images)
            return self.model.encode_image(batch.images), None, cond.guided(*call)

        def make(first: Batch) -> dict[str, Any]:
            nonlocal cond
            start = start_rollout(self.model, self.rollout, first, settings.noise.scope)
            cond = start.cond
            x0 = self.sample(start)
            return {"x0": x0, "noise": start.noise if settings.noise.source == "rollout" else None}

        made = self.rolled_out(batch, make)
        cond = cond or encode(self.model, batch.prompts, batch.source_images)
        return made["x0"], made["noise"], cond.guided(*call)

    def sample(self, start: RolloutStart) -> Latents:
        """x0 to train on, without gradient, under `rollout.lora` and `rollout.cache`."""
        lora, threshold = self.rollout_lora, self.rollout.cache
        with (
            lora.active() if lora is not None else nullcontext(),
            block_cache(self.model.denoiser, threshold) if threshold else nullcontext(),
        ):
            return sample_rollout(self.model, start)

    def start(self, batch: Batch) -> RolloutStart:
        """The start of a rollout whose calls may train."""
        start = start_rollout(self.model, self.rollout, batch)
        return replace(start, cond=self.trained(start.cond))

    def trained(self, cond: Conditioning) -> Conditioning:
        """`cond`, with the gradient of guidance that the settings ask for."""
        return replace(cond, detach_negative=self.settings.cfg_detach_negative)

    def image_loss(
        self, x0: Latents, batch: Batch, branch: str, sigma: PerSample | None = None
    ) -> LossTerm:
        """The mean loss of the images of `x0`, with the levels of their rewards at `sigma`."""
        output = self.objective(self.seen(x0), batch)
        loss = objective_math.hinge(output.reward, 1.0, self.settings.margin)
        levels = {} if sigma is None else {"sigma": sigma, "reward": output.reward}
        return LossTerm(loss.mean(), branch, output.metrics, levels)

    def kl_losses(self, batch: Batch, x0: Latents, cond: Conditioning) -> Iterator[LossTerm]:
        """The KL term, if there is one, in a call of its own: the detached `x0` with fresh noise at
        a level of `kl_noise_levels` (by default `KL_LEVELS`), called under `cond`."""
        if self.centre is None:
            return
        model, x0 = self.model, x0.detach()
        sampler = build_sigma_sampler(
            self.settings.kl_noise_levels or KL_LEVELS, model, self.rollout
        )
        generator = rng.update_generator(batch, rng.KL_LEVEL)
        drawn = rng.draw_rows(batch, lambda n: sampler.draw(n, generator))
        noise = to_like(rng.batch_noise(batch, rng.KL_NOISE, tuple(x0.shape)), x0)
        sigma = sampler.denoise(drawn).sigma_from
        x_t = inject(model.path, x0, noise, sigma).x_t
        sigma = to_device(sigma, x0.device)
        centre = self.centre(batch.step, cond, x_t, sigma, batch.own_kept)
        kl = objective_math.velocity_kl(predict(model, cond, x_t, sigma), centre)
        levels = {"sigma": sigma, "kl": kl}
        yield LossTerm(self.settings.kl_beta * kl.mean(), "kl", {"kl": kl.mean()}, levels)

    @torch.no_grad()
    def sampled(
        self, batch: Batch, count: int, cond: Conditioning
    ) -> tuple[list[Batch], list[list[int]], list[Latents], list[Images | Latents]]:
        """`count` samples of each prompt, neighbours in slices of b: batches, their rows in `cond`,
        which is of the b prompts, latents and what the reward sees of each slice."""
        b, every = len(batch.prompts), batch.repeated(count)
        parts, places, latents, seen = [], [], [], []
        for first in range(0, count * b, b):
            rows = slice(first, first + b)
            own = {"prompts": every.prompts[rows], "sources": every.sources and every.sources[rows]}
            parts.append(replace(every, **own, offset=every.offset + first))
            places.append([row // count for row in range(first, first + b)])
            own_cond = cond.rows(places[-1])
            start = start_rollout(self.model, self.rollout, parts[-1], cond=own_cond)
            latents.append(self.sample(start))
            seen.append(self.seen(latents[-1]))
        return parts, places, latents, seen

    def own_weights(self) -> Mapping[str, Tensor]:
        """The method's own copy of the trained weights by name, by reference, which a checkpoint
        holds whole or sharded as it holds these; empty if it has none."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        rollouts = {"rollouts": dict(self.rollouts)} if self.rollouts else {}
        lora = {} if self.rollout_lora is None else {"rollout_lora": self.rollout_lora.fingerprint}
        return {**self.objective.state_dict(), **rollouts, **lora}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        now = None if self.rollout_lora is None else self.rollout_lora.fingerprint
        if (before := state.get("rollout_lora")) != now:
            given = "" if self.rollout.lora is None else f"{self.rollout.lora}: "
            other = "another LoRA" if now else "a LoRA"
            remedy = f"with {other}: restore it" if before else "without a LoRA: remove it"
            raise DirectAlignError(
                f"rollout.lora: {given}the checkpoint's rollouts were sampled {remedy}, or start a "
                "new run"
            )
        self.objective.load_state_dict(state)
        self.rollouts = dict(state.get("rollouts", {}))


class RewardObjective:
    """One reward model with a form and phrases; `group` shares the anchor's reference."""

    def __init__(
        self, reward: Reward, settings: config.ObjectiveConfig, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        require_prompt_reader(reward, settings.form)
        self.reward_model, self.settings, self.group = reward, settings, group
        self.reference = Reference(settings.anchor.reference_updates)
        self.base_means: tuple[float, float] | None = None
        """Means of pos − neg and of the plain score, of the base model; see methods/ceiling.py."""

    def __call__(
        self, images: Images | Latents, batch: Batch, k_pos: Ramp = 0.0, k_neg: Ramp = 0.0
    ) -> ObjectiveOutput:
        """Evaluate what the reward sees, decoded images or latents, with the ramps `k_pos`, `k_neg`
        (relative form).

        With n times as many images as prompts, each prompt belongs to n consecutive images. Without
        gradient these are scored in slices of as many images as prompts.
        """
        repeats, phrases = len(images) // len(batch.prompts), self.settings.control_phrases
        prompts = [prompt for prompt in batch.prompts for _ in range(repeats)]
        step = batch.step + phrases.cycle_start
        size = len(images) if torch.is_grad_enabled() else len(batch.prompts)
        slices = [slice(first, first + size) for first in range(0, len(images), size)]
        sources = batch.sources and batch.sources.repeated(repeats)
        parts = [
            self.scores(images[at], prompts[at], phrases.order, step, sources and sources[at])
            for at in slices
        ]
        scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        reward = self._reward(scores, batch, k_pos, k_neg)
        named = {"reward": reward, **scores}
        means: dict[str, float | Tensor] = {
            name: mean_of_rewarded(value, batch) for name, value in named.items()
        }
        if batch.kept:
            kept = to_device(_is_kept(batch, reward), reward.device)
            reward = torch.where(kept, reward.detach(), reward)
        if self.ceiling is not None:
            means["ceiling"] = self.ceiling
        return ObjectiveOutput(reward, means)

    def scores(
        self,
        images: Images | Latents,
        prompts: list[str],
        order: str,
        step: int,
        sources: Sources | None = None,
    ) -> dict[str, PerSample]:
        """The scores of each image under its prompt that the form needs."""
        model, phrases, form = self.reward_model, self.settings.control_phrases, self.settings.form
        if model.sees != "latents":
            images = map_images(images, self.settings.image_mapping)
        features = image_features(model, images, sources)
        sides: dict[str, list[str]] = {}
        if form != "absolute" or (phrases.positive and model.reads_prompt):
            sides["score_pos"] = phrases.positive
        if form != "absolute":
            sides["score_neg"] = phrases.negative
        texts: dict[str, list[list[str]]] = {}
        for name, side in sides.items():
            selected = select_phrases(side, order, step)
            texts[name] = [[f"{phrase}. {prompt}" for prompt in prompts] for phrase in selected]
        if form == "anchored" or not sides:
            texts["score_plain"] = [prompts]
        found = score_all(model, features, [each for side in texts.values() for each in side])
        parts = found.split([len(side) for side in texts.values()])
        return {name: part.mean(0) for name, part in zip(texts, parts, strict=True)}

    @property
    def ceiling(self) -> float | None:
        """Highest pos − neg that pays; None: all does."""
        given = self.settings.ceiling
        if given is None or self.settings.form == "absolute":
            return None
        gap = self.base_means[0] if self.base_means is not None else given.gap
        if gap is None:
            raise RuntimeError("the ceiling is not measured: call measure_ceiling first")
        return gap + given.margin

    def _reward(
        self, scores: Mapping[str, PerSample], batch: Batch, k_pos: Ramp, k_neg: Ramp
    ) -> PerSample:
        if self.settings.form == "absolute":
            return next(iter(scores.values()))
        pos, neg = scores["score_pos"], scores["score_neg"]
        if self.settings.form == "relative":
            reward = objective_math.relative_reward(pos, neg, k_pos, k_neg)
        else:
            k_pos = k_neg = 0.0  # without ramps
            plain, tolerance = scores["score_plain"], self.settings.anchor.tolerance
            rewarded = plain
            if batch.kept:
                rows = (~_is_kept(batch, plain)).nonzero()[:, 0]
                rewarded = plain[to_device(rows, plain.device)]
            self.reference.update(rewarded, batch.step, self.group)
            measured = self.base_means
            reference = self.reference.value if measured is None else measured[1]
            reward = objective_math.anchored_reward(pos, neg, plain, reference, tolerance)
        if self.ceiling is None:
            return reward
        return reward - objective_math.above_ceiling(pos, neg, k_pos, k_neg, self.ceiling)

    def state_dict(self) -> dict[str, Any]:
        state = {"reference_sum": self.reference.total, "reference_count": self.reference.count}
        return state if self.base_means is None else {**state, "base_means": self.base_means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.total = state["reference_sum"]
        self.reference.count = state["reference_count"]
        # "asked_means" in checkpoints of older versions
        self.base_means = state.get("base_means", state.get("asked_means"))


class MixedObjective:
    """A mixture of rewards as one objective; processes of `group` share its running statistics."""

    def __init__(
        self, mix: MixReward, settings: config.ObjectiveConfig, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.settings, self.labels = mix.settings, [member.label for member in mix.members]
        self.objectives = [
            _member_objective(index, member.reward, member.settings, settings)
            for index, member in enumerate(mix.members)
        ]
        weights = [member.settings.weight for member in mix.members]
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.rewards, self.norms = RunningStats(len(self.labels)), RunningStats(len(self.labels))
        self.group = group

    def __call__(
        self, images: Images | Latents, batch: Batch, k_pos: Ramp = 0.0, k_neg: Ramp = 0.0
    ) -> ObjectiveOutput:
        """Evaluate decoded images; the ramps act in every member of the relative form."""
        for objective in self.objectives:
            objective.group = self.group
        if self.settings.gradient_normalization:
            return self._normalized(images, batch, k_pos, k_neg)
        outputs = [objective(images, batch, k_pos, k_neg) for objective in self.objectives]
        scaled = self._scaled(outputs, images, batch.step)
        return ObjectiveOutput(self._mixed(scaled), self._metrics(outputs, scaled))

    def _normalized(
        self, images: Images | Latents, batch: Batch, k_pos: Ramp, k_neg: Ramp
    ) -> ObjectiveOutput:
        """The same value with a normalized gradient, in memory for the graph of one member."""
        at = images.detach().requires_grad_()
        outputs, gradients = list[ObjectiveOutput](), list[Tensor]()
        for objective in self.objectives:
            output = objective(at, batch, k_pos, k_neg)
            gradients.append(torch.autograd.grad(output.reward.sum(), at)[0])
            outputs.append(ObjectiveOutput(output.reward.detach(), output.metrics))
        lengths = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
        self.norms.update(lengths, batch.step, self.group)

        scaled = self._scaled(outputs, images, batch.step).requires_grad_()
        mixed = self._mixed(scaled)
        slopes = torch.autograd.grad(mixed.sum(), scaled)[0]
        gradient = objective_math.balanced_gradient(
            torch.stack(gradients), slopes, self.norms.rms.to(slopes), self._scales.to(slopes)
        )
        metrics = self._metrics(outputs, scaled)
        for label, length in zip(self.labels, lengths, strict=True):
            metrics[f"gradient_{label}"] = length.mean()
        return ObjectiveOutput(objective_math.with_gradient(mixed, gradient, images), metrics)

    def _scaled(self, outputs: list[ObjectiveOutput], images: Tensor, step: int) -> Tensor:
        """The members' rewards (m, b), divided by their running stds, which are updated first."""
        rewards = torch.stack([output.reward.to(images) for output in outputs])
        self.rewards.update(rewards, step, self.group)
        return rewards / self._scales.to(rewards)[:, None]

    def _mixed(self, scaled: Tensor) -> Tensor:
        means = (self.rewards.means / self._scales).to(scaled)
        return objective_math.mixed_reward(
            scaled, means, to_like(self.weights, scaled), self.settings.std_penalty
        )

    @property
    def _scales(self) -> Tensor:
        stds = self.rewards.stds
        return stds if self.settings.normalise == "running" else torch.ones_like(stds)

    def _metrics(self, outputs: list[ObjectiveOutput], scaled: Tensor) -> dict[str, float | Tensor]:
        metrics: dict[str, float | Tensor] = {"reward": self._mixed(scaled.detach()).mean()}
        shares = to_like(self.weights, scaled) * scaled.detach().mean(1)
        for label, output, share in zip(self.labels, outputs, shares, strict=True):
            metrics |= {f"{name}_{label}": value for name, value in output.metrics.items()}
            metrics[f"share_{label}"] = share
        return metrics

    def state_dict(self) -> dict[str, Any]:
        pairs = zip(self.labels, self.objectives, strict=True)
        members = {label: objective.state_dict() for label, objective in pairs}
        running = {"rewards": self.rewards.state_dict(), "norms": self.norms.state_dict()}
        return {"members": members, **running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for label, objective in zip(self.labels, self.objectives, strict=True):
            objective.load_state_dict(state["members"][label])
        self.rewards.load_state_dict(state["rewards"])
        self.norms.load_state_dict(state["norms"])


def mean_of_rewarded(values: PerSample, batch: Batch) -> Float[Tensor, ""]:
    """Mean over the images that are not kept, without gradient; n values of each prompt, as
    neighbours. Over batches of equal size the mean of these is that of all such images."""
    values = values.detach()
    if not batch.kept:
        return values.mean()
    kept = to_device(_is_kept(batch, values), values.device)
    mean = torch.where(kept, 0.0, values).mean()
    share = batch.kept.count(False) / len(batch.kept)
    return mean.to(widest(mean.device)) / share


def _is_kept(batch: Batch, values: PerSample) -> Bool[Tensor, " b"]:
    """Of each of `values`, whether its prompt is kept; on the CPU."""
    repeats = len(values) // len(batch.prompts)
    return torch.tensor([kept for kept in batch.own_kept for _ in range(repeats)])


def map_images(images: Images, mapping: str) -> Images:
    """To [0, 1]: "clamp" (no gradient outside), or "min_max" per image (ignores brightness)."""
    if mapping == "clamp":
        return images.clamp(0, 1)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def require_prompt_reader(reward: Reward, form: str) -> None:
    """Refuse a form that compares two phrasings for a reward that ignores the prompt."""
    if form != "absolute" and not reward.reads_prompt:
        raise DirectAlignError(
            f"reward.name {reward.name} ignores control phrases, so method.form {form} has no two "
            "scores to compare: set method.form: absolute, or use a reward that reads prompts "
            "(reward.name: clip)"
        )


def require_gradient(reward: Reward, method: str, key: str = "reward") -> None:
    """Refuse a reward without a gradient where the method differentiates through it."""
    if not reward.differentiable:
        raise DirectAlignError(NO_GRADIENT.format(key=key, name=reward.name, method=method))


NO_GRADIENT = (
    "{key}.name {name} is a black box, and method.name {method} needs its gradient with respect to "
    "the image: set method.name: flow_grpo, which only needs scores, or use a differentiable "
    "reward (reward.name: clip)"
)


def require_no_normalization(settings: config.MixtureConfig, method: str) -> None:
    """Refuse gradient normalization where no gradient is computed."""
    if settings.gradient_normalization:
        raise DirectAlignError(
            "reward.gradient_normalization: true needs a method that differentiates its reward, "
            f"and method.name {method} only uses scores: set reward.gradient_normalization: false"
        )


def member_settings(
    index: int, member: config.MemberConfig, method: config.ObjectiveConfig
) -> config.ObjectiveConfig:
    """The method's settings with the form, control phrases and anchor that the member sets.

    A member of form absolute is scored under its own positive phrases, else the bare prompt: the
    method's phrases belong to the method's form. Raises DirectAlignError for phrases that do not
    fit the form.
    """
    form = method.form if member.form == "method" else member.form
    inherited = method.control_phrases if member.form == "method" else config.ControlPhrases()
    phrases = member.control_phrases or inherited
    if form != "absolute" and not (phrases.positive and phrases.negative):
        raise DirectAlignError(
            f"reward.members.{index}.control_phrases: form {form} compares two phrasings: give "
            "positive and negative ones, or leave them out to use the method's"
        )
    anchor = member.anchor or method.anchor
    return method.model_copy(update={"form": form, "control_phrases": phrases, "anchor": anchor})


def _member_objective(
    index: int, reward: Reward, member: config.MemberConfig, method: config.ObjectiveConfig
) -> RewardObjective:
    settings = member_settings(index, member, method)
    if settings.form != "absolute" and not reward.reads_prompt:
        raise DirectAlignError(
            f"reward.members.{index}.form: {reward.name} ignores control phrases, and method.form: "
            f"{settings.form} compares two; set reward.members.{index}.form: absolute"
        )
    return RewardObjective(reward, settings)


def build_sigma_sampler(
    settings: Any, model: Model, rollout: config.RolloutConfig
) -> noise_levels.SigmaSampler:
    """The sampler of noise levels that `method.noise_levels` describes. Those of a rollout are of
    images of its height and width."""
    values = settings.model_dump(exclude={"kind"})
    if isinstance(settings, config.RolloutNoiseLevels):
        sigmas = training_sigmas(model, rollout, *image_size(model, rollout))
        return noise_levels.RolloutSampler(sigmas, **values)
    if isinstance(settings, config.GridNoiseLevels):
        return noise_levels.GridSampler(**values)
    if isinstance(settings, config.ConstantGainNoiseLevels):
        values |= {"path": model.path, "prediction": model.prediction}
        return noise_levels.ConstantGainSampler(**values)
    return noise_levels.UniformSampler(**values)
