"""Direct-Align and SRPO (arXiv 2509.06942): known noise in, one network call, a closed-form image, a reward asked two ways.

The paper: optimise the whole trajectory by recovering x0 from any noise level with the *injected* noise, and
reward what one control phrase has over another, on a denoise and an inversion branch that land on the same
level. Here: the same step for every path and prediction, with `form` choosing plain Direct-Align (absolute), SRPO
(relative), or our own anchored reward, which holds the bare prompt's score where the base model had it and needs no
inversion branch. Left out: nothing of the released trainer's step; its values are the presets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import ConstantGainMoves, UniformMoves, WindowMoves
from ..config import Method as Settings
from ..config import Rollout as RolloutSettings
from ..core import moves, noising, preference, recovery
from ..core.path import per_sample, truncated
from ..interfaces import Family, Reward
from ..rewards import require_text_side
from ..rollout import rollout_sigmas, sample
from ..types import Batch, Conditioning, Images, Latents, Loss, PerSample, Scores

NOISE, FRESH_NOISE, MOVE = 1, 2, 3
"""Streams of random numbers: each use draws from its own."""


class SRPO:
    """`losses(batch)` yields one loss per injection and branch."""

    def __init__(self, family: Family, reward: Reward, settings: Settings, rollout: RolloutSettings) -> None:
        require_text_side(reward, settings.form)
        self.family, self.reward, self.settings, self.rollout = family, reward, settings, rollout
        self.window = window_of(settings.moves, family)
        self.branches = {"both": ("denoise", "inversion")}.get(settings.branches, (settings.branches,))
        self.reference = Reference(settings.anchor.reference_updates)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Make x0; then for each injection and branch: inject, predict, recover, reward, yield."""
        cond = self.family.encode_prompt(batch.prompts)
        x0, noise = self._clean_images(batch, cond)
        for injection in range(self.settings.injections):
            known = noise if noise is not None else self._noise(batch, FRESH_NOISE, x0.shape, injection)
            landing = self.window.draw(len(x0), _generator(batch, MOVE, injection))
            for branch in self.branches:
                move = self.window.denoise(landing) if branch == "denoise" else self.window.inversion(landing)
                yield self._branch(batch, cond, x0, known.to(x0), move, branch)

    def _branch(self, batch: Batch, cond: Conditioning, x0: Latents, noise: Latents, move: moves.Move, branch: str) -> Loss:
        family, settings = self.family, self.settings
        noised = noising.inject(family.path, x0, noise, move.sigma_from)
        cond = cond.guided(settings.embedded_guidance, settings.cfg_scale)
        pred = family.predict(noised.x_t, self._shown(move.sigma_from, x0.device), cond)
        recovered = recovery.recover(family.path, family.prediction, noised, pred, move.sigma_to)

        images = map_images(family.decode(recovered.x0), settings.image_mapping)
        scores = self._scores(images, batch)
        reward = self._reward(scores, move, branch, batch.step)
        loss = preference.hinge(reward, recovery.direction(recovered.gain), settings.margin)
        if settings.discount_shift is not None:
            loss = loss * preference.discount(move.position, settings.discount_shift).to(loss)
        value = loss.mean() / settings.injections
        error = (per_sample(recovered.gain, noised.x0).to(noised.x0) * recovered.residual).square().mean((1, 2, 3)).sqrt()
        return Loss(value, branch, _metrics(scores, reward), _levels(move, recovered.gain, reward, error))

    # --- make x0 ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _clean_images(self, batch: Batch, cond: Conditioning) -> tuple[Latents, Latents | None]:
        """Clean latents, and the noise they were made from if that is the noise to inject."""
        if batch.images is not None:
            return self.family.encode_image(batch.images), None
        height, width = (self.rollout.height or self.family.default_size[0]), (self.rollout.width or self.family.default_size[1])
        noise = self._noise(batch, NOISE, (len(batch.prompts), *self.family.latent_shape(height, width)))
        noise = noise.to(next(self.family.denoiser.parameters()).device)
        sigmas = rollout_sigmas(self.family, self.rollout, height, width)
        x0 = sample(self.family, cond.guided(self.rollout.embedded_guidance, self.rollout.cfg_scale), noise, sigmas)
        return x0, noise if self.settings.noise.source == "rollout" else None

    def _noise(self, batch: Batch, stream: int, shape: Sequence[int], injection: int = 0) -> Tensor:
        if self.settings.noise.scope == "shared":
            one = noising.draw_noise((1, *shape[1:]), noising.generator_for(batch.seed, stream, batch.step, batch.micro, injection))
            return one.expand(*shape)
        return noising.draw_noise(tuple(shape), _generator(batch, stream, injection))

    def _shown(self, sigma: Tensor, device: torch.device) -> PerSample:
        resolution = self.settings.truncate_timestep
        return (sigma if resolution is None else truncated(sigma, resolution)).to(device)

    # --- reward -----------------------------------------------------------------------------------------------------

    def _scores(self, images: Images, batch: Batch) -> Scores:
        words, features = self.settings.words, self.reward.encode(images)

        def score(phrases: list[str]) -> Tensor:
            each = [self.reward.score(features, [f"{phrase}. {prompt}" for prompt in batch.prompts]) for phrase in phrases]
            return torch.stack(each).mean(0)

        pos = score(chosen(words.positive, words.order, batch.step)) if words.positive and self.reward.reads_prompt else None
        neg = score(chosen(words.negative, words.order, batch.step)) if self.settings.form != "absolute" else None
        plain = self.reward.score(features, batch.prompts) if self.settings.form == "anchored" or pos is None else None
        return Scores(pos, neg, plain)

    def _reward(self, scores: Scores, move: moves.Move, branch: str, step: int) -> PerSample:
        """What is maximised, per image; gradient intact."""
        if scores.pos is None or scores.neg is None:
            score = scores.plain if scores.pos is None else scores.pos
            assert score is not None
            return score
        if scores.plain is not None:
            self.reference.see(scores.plain, step)
            return preference.anchored_reward(scores.pos, scores.neg, scores.plain, self.reference.value, self.settings.anchor.tolerance)
        ramps = self.settings.denoise if branch == "denoise" else self.settings.inversion
        k_pos, k_neg = (moves.Ramp(ramp.low_noise, ramp.high_noise).at(move.position) for ramp in (ramps.k_pos, ramps.k_neg))
        return preference.relative_reward(scores.pos, scores.neg, k_pos, k_neg)

    def state_dict(self) -> Mapping[str, Any]:
        return {"reference_sum": self.reference.total, "reference_count": self.reference.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.total, self.reference.count = state["reference_sum"], state["reference_count"]


class Reference:
    """The base model's score of the bare prompt: its mean over the first updates, when little has moved yet."""

    def __init__(self, updates: int) -> None:
        self.updates, self.total, self.count = updates, 0.0, 0

    def see(self, plain: PerSample, step: int) -> None:
        if step < self.updates:
            self.total += float(plain.detach().double().sum())
            self.count += len(plain)

    @property
    def value(self) -> float:
        return self.total / self.count


def window_of(chosen: WindowMoves | UniformMoves | ConstantGainMoves, family: Family) -> moves.Window:
    """The window of noise levels that the settings describe."""
    if isinstance(chosen, WindowMoves):
        return moves.WindowGrid(chosen.schedule_steps, chosen.schedule_shift, chosen.first, chosen.last, chosen.points, chosen.groundtruth_ratio)
    if isinstance(chosen, UniformMoves):
        return moves.UniformWindow(chosen.sigma_high, chosen.sigma_low, chosen.jump)
    return moves.ConstantGainWindow(chosen.sigma_high, chosen.sigma_low, chosen.gain, family.path, family.prediction)


def map_images(images: Images, mapping: str) -> Images:
    """To [0, 1], as the reward expects: clamped (no gradient outside), or stretched per image (no pay for brightness)."""
    if mapping == "clamp":
        return images.clamp(0, 1)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def chosen(words: list[str], order: str, step: int) -> list[str]:
    """The phrases of this step: the next of the list, the first, or all (their scores are averaged)."""
    return {"cycle": [words[step % len(words)]], "fixed": words[:1], "average": words}[order]


def _generator(batch: Batch, stream: int, injection: int) -> torch.Generator:
    return noising.generator_for(batch.seed, stream, batch.step, batch.micro, injection, batch.rank)


def _metrics(scores: Scores, reward: Tensor) -> dict[str, float]:
    named = {"reward": reward, "score_pos": scores.pos, "score_neg": scores.neg, "score_plain": scores.plain}
    return {name: float(value.detach().mean()) for name, value in named.items() if value is not None}


def _levels(move: moves.Move, gain: Tensor, reward: Tensor, error: Tensor) -> dict[str, list[float]]:
    named = {"sigma": move.sigma_from, "gain": gain, "reward": reward, "recovery_error": error}
    return {name: value.detach().double().cpu().tolist() for name, value in named.items()}
