"""The seam between methods and rewards: `preference_of` gives what a method asks, of a single reward or of a mixture.

A mixture asks every member in its own form and words (`preference.Preference` each, with its own anchor), divides what it says
by its running spread, weighs and adds, and takes off what the members disagree about. With `balance: gradient` the members'
gradients in the image are made equally long first. Each member's part is in the metrics: `reward_<label>` and its scores in its
own units, `share_<label>` what it adds to the mixed reward, `gradient_<label>` how long its gradient was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..core import mixing
from ..interfaces import ALONE, Reward, Together
from ..types import Batch, DirectAlignError, Images, PerSample
from .mixture import MixReward
from .preference import NO_GRADIENT, Asked, Preference, require_gradient
from .running import Running


def preference_of(reward: Reward, settings: config.Preferring, by_gradient: bool = True) -> Preference | MixedPreference:
    """The reward with the questions of a method's settings; `by_gradient` is False for a method that needs scores alone.

    Raises DirectAlignError for a reward without a gradient where one is needed, and for one that ignores the prompt where the form
    compares two phrasings; of a mixture it names the member.
    """
    method = str(getattr(settings, "name", ""))
    if not isinstance(reward, MixReward):
        if by_gradient:
            require_gradient(reward, method)
        return Preference(reward, settings)
    for place, member in enumerate(reward.members):
        if by_gradient and not member.reward.differentiable:
            raise DirectAlignError(NO_GRADIENT.format(name=member.reward.name, method=method).replace("reward.name", f"reward.members.{place}.reward.name"))
    if not by_gradient:
        require_no_balance(reward.settings, method)
    return MixedPreference(reward, settings)


class MixedPreference:
    """A mixture of rewards as one preference; ranks that train `together` have one set of running numbers."""

    def __init__(self, mix: MixReward, settings: config.Preferring, together: Together = ALONE) -> None:
        self.settings, self.labels = mix.settings, [member.label for member in mix.members]
        self.preferences = [_asker(place, member.reward, member.settings, settings) for place, member in enumerate(mix.members)]
        self.weights = torch.tensor([member.settings.weight for member in mix.members], dtype=torch.float64)
        self.rewards, self.norms = Running(len(self.labels)), Running(len(self.labels))
        self.together = together

    @property
    def together(self) -> Together:
        return self._together

    @together.setter
    def together(self, together: Together) -> None:
        self._together = together
        for preference in self.preferences:
            preference.together = together

    def ask(self, images: Images, batch: Batch, k_pos: PerSample | float = 0.0, k_neg: PerSample | float = 0.0) -> Asked:
        """Judge decoded images of the batch's prompts; the ramps act in every member of the relative form."""
        if self.settings.balance == "gradient":
            return self._balanced(images, batch, k_pos, k_neg)
        asked = [preference.ask(images, batch, k_pos, k_neg) for preference in self.preferences]
        units = self._in_units(asked, images, batch.step)
        return Asked(self._mixed(units), self._metrics(asked, units))

    def _balanced(self, images: Images, batch: Batch, k_pos: PerSample | float, k_neg: PerSample | float) -> Asked:
        """The same value; its gradient is that of the members one by one at the image, which is why only one member's graph is ever kept."""
        at, asked, gradients = images.detach().requires_grad_(), list[Asked](), list[Tensor]()
        for preference in self.preferences:
            each = preference.ask(at, batch, k_pos, k_neg)
            gradients.append(torch.autograd.grad(each.reward.sum(), at)[0])
            asked.append(Asked(each.reward.detach(), each.metrics))
        lengths = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
        self.norms.see(lengths, batch.step, self.together)

        units = self._in_units(asked, images, batch.step).requires_grad_()
        mixed = self._mixed(units)
        slopes = torch.autograd.grad(mixed.sum(), units)[0]
        gradient = mixing.balanced_gradient(torch.stack(gradients), slopes, self.norms.sizes.to(slopes), self._scales.to(slopes))
        each_length = {f"gradient_{label}": float(length.mean()) for label, length in zip(self.labels, lengths, strict=True)}
        return Asked(mixing.carrying(mixed, gradient, images), {**self._metrics(asked, units), **each_length})

    def _in_units(self, asked: list[Asked], images: Images, step: int) -> Tensor:
        """The members' rewards (m, b), each divided by its running spread, after taking note of them."""
        rewards = torch.stack([each.reward.to(images) for each in asked])
        self.rewards.see(rewards, step, self.together)
        return rewards / self._scales.to(rewards)[:, None]

    def _mixed(self, units: Tensor) -> Tensor:
        means = (self.rewards.means / self._scales).to(units)
        return mixing.mixed_reward(units, means, self.weights.to(units), self.settings.disagreement)

    @property
    def _scales(self) -> Tensor:
        spreads = self.rewards.spreads
        return spreads if self.settings.normalise == "running" else torch.ones_like(spreads)

    def _metrics(self, asked: list[Asked], units: Tensor) -> dict[str, float]:
        shares = (self.weights.to(units) * units.detach().mean(1)).tolist()
        metrics = {f"{name}_{label}": value for label, each in zip(self.labels, asked, strict=True) for name, value in each.metrics.items()}
        metrics |= {f"share_{label}": share for label, share in zip(self.labels, shares, strict=True)}
        return {"reward": float(self._mixed(units.detach()).mean()), **metrics}

    def state_dict(self) -> dict[str, Any]:
        members = {label: preference.state_dict() for label, preference in zip(self.labels, self.preferences, strict=True)}
        return {"members": members, "rewards": self.rewards.state_dict(), "norms": self.norms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for label, preference in zip(self.labels, self.preferences, strict=True):
            preference.load_state_dict(state["members"][label])
        self.rewards.load_state_dict(state["rewards"])
        self.norms.load_state_dict(state["norms"])


def questions(place: int, member: config.Member, method: config.Preferring) -> config.Preferring:
    """The method's settings as one member has them: its own form, words and anchor where it has any.

    A member of form absolute is asked under its own positive phrases, else about the bare prompt: the method's words are for the
    form of the method. Raises DirectAlignError for words that do not fit the form.
    """
    form = method.form if member.form == "method" else member.form
    words = member.words or (method.words if member.form == "method" else config.Words())
    if form != "absolute" and not (words.positive and words.negative):
        raise DirectAlignError(
            f"reward.members.{place}.words: form {form} compares two phrasings: give positive and negative ones, or leave words out to take the method's"
        )
    return method.model_copy(update={"form": form, "words": words, "anchor": member.anchor or method.anchor})


def require_no_balance(settings: config.Mix, method: str) -> None:
    """Refuse to balance gradients where none is taken."""
    if settings.balance == "gradient":
        raise DirectAlignError(
            f"reward.balance: gradient needs a method that differentiates its reward, and method.name {method} asks for scores alone: set reward.balance: none"
        )


def _asker(place: int, reward: Reward, member: config.Member, method: config.Preferring) -> Preference:
    asked = questions(place, member, method)
    if asked.form != "absolute" and not reward.reads_prompt:
        raise DirectAlignError(NO_TEXT_SIDE.format(place=place, name=reward.name, form=asked.form))
    return Preference(reward, asked)


NO_TEXT_SIDE = "reward.members.{place}.form: {name} ignores prompts, and method.form: {form} compares two; set reward.members.{place}.form: absolute"
