"""Several rewards in one: each scores every image, and the scores are added with weights.

    reward:
      name: mix
      members:
        - {label: style, weight: 1.0, reward: {name: clip, path: world:reward}}
        - {label: light, weight: -0.3, form: absolute, reward: {name: pixels, statistic:
        brightness}}

`score` here is the weighted sum of raw scores, in their own units. Normalisation and each member's
form are part of training: see `methods.objective`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import config, rewards
from ..interfaces import Model, Reward
from ..types import DirectAlignError, Images, Latents, PerSample, Sources
from .common import BaseReward, Device, image_features, score_all


@dataclass(frozen=True)
class Member:
    """One reward of a mixture with its settings."""

    settings: config.MemberConfig
    reward: Reward

    @property
    def label(self) -> str:
        return self.settings.label


class MixReward(BaseReward):
    """The weighted sum of `members` (`interfaces.Reward`).

    It reads prompts if a member does, and is differentiable if all members are.
    """

    name = "mix"
    file_keys = ()

    def __init__(self, members: Sequence[Member], settings: config.MixtureConfig) -> None:
        self.members, self.settings = tuple(members), settings
        self.reads_prompt = any(member.reward.reads_prompt for member in self.members)
        self.differentiable = all(member.reward.differentiable for member in self.members)
        self.reads_sources = any(getattr(m.reward, "reads_sources", False) for m in self.members)
        self.sees = _common_sight([member.reward for member in self.members])

    @classmethod
    def _load(cls, settings: config.MixtureConfig, device: Device, key: str) -> MixReward:
        """Load all members of a recipe section."""
        loaded = [
            Member(each, rewards.load_reward(each.reward, device, key_of(index, key)))
            for index, each in enumerate(settings.members)
        ]
        return cls(loaded, settings)

    @classmethod
    def _check(cls, settings: config.MixtureConfig, key: str, online: bool) -> None:
        for index, member in enumerate(settings.members):
            rewards.check_reward(member.reward, key_of(index, key), online)
        names = [each.reward.name for each in settings.members if each.reward.name != "python"]
        if names:  # what a Python object sees is known when it is loaded
            _common_sight([rewards.reward_class(name) for name in names], key)

    def check_model(self, model: Model) -> None:
        for member in self.members:
            if isinstance(member.reward, BaseReward):
                member.reward.check_model(model)

    def encode(self, images: Images | Latents, sources: Sources | None = None) -> tuple[Any, ...]:
        """The features of each member, in order."""
        return tuple(image_features(member.reward, images, sources) for member in self.members)

    def score(self, features: tuple[Any, ...], prompts: Sequence[str]) -> PerSample:
        """Weighted sum of the raw scores (b,), on the device of the first member's."""
        return self.score_all(features, [prompts])[0]

    def score_all(
        self, features: tuple[Any, ...], texts: Sequence[Sequence[str]]
    ) -> Float[Tensor, "k b"]:
        """`score` under k lists of prompts."""
        return self.weighted(self.each(features, texts))

    def weighted(self, scores: Mapping[str, Float[Tensor, "k b"]]) -> Float[Tensor, "k b"]:
        """The weighted sum of the members' scores by label."""
        weighted = [each.settings.weight * scores[each.label] for each in self.members]
        return torch.stack([score.to(weighted[0]) for score in weighted]).sum(0)

    def each(
        self, features: tuple[Any, ...], texts: Sequence[Sequence[str]]
    ) -> Mapping[str, Float[Tensor, "k b"]]:
        """The raw scores (k, b) of every member under k lists of prompts, by its label."""
        return {
            member.label: score_all(member.reward, own, texts)
            for member, own in zip(self.members, features, strict=True)
        }


def _common_sight(members: Sequence[Any], key: str = "reward") -> str:
    """What all members see. Raises DirectAlignError if some see latents and some pixels."""
    if len({each.sees for each in members}) > 1:
        latent = next(each.name for each in members if each.sees == "latents")
        raise DirectAlignError(
            f"{key}.members: {latent} sees latents and others see images: mix rewards of one kind"
        )
    return members[0].sees


def key_of(index: int, key: str = "reward") -> str:
    """Recipe key of a member's reward: reward.members.0.reward."""
    return f"{key}.members.{index}.reward"
