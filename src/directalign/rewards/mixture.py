"""Several rewards in one: each judges every image, and what they say is weighed and added.

    reward:
      name: mix
      members:
        - {label: style, weight: 1.0, reward: {name: clip, path: world:reward}}
        - {label: light, weight: -0.3, form: absolute, reward: {name: pixels, statistic: brightness}}

This is the plain side: a member's `score` is a raw answer, and that of the mixture their weighted sum in whatever units they have.
Bringing them to one scale, each asked in its own form, belongs to training: see `asking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import config, rewards
from ..interfaces import Reward
from ..types import Images, PerSample
from .common import BaseReward


@dataclass(frozen=True)
class Member:
    """One reward of a mixture, and what the recipe says of it."""

    settings: config.Member
    reward: Reward

    @property
    def label(self) -> str:
        return self.settings.label


class MixReward(BaseReward):
    """The weighted sum of `members` (`interfaces.Reward`); reads prompts if one of them does, has a gradient if all have."""

    name = "mix"
    file_keys = ()

    def __init__(self, members: Sequence[Member], settings: config.Mix) -> None:
        self.members, self.settings = tuple(members), settings
        self.reads_prompt = any(member.reward.reads_prompt for member in self.members)
        self.differentiable = all(member.reward.differentiable for member in self.members)

    @classmethod
    def from_config(
        cls, settings: config.Mix, device: torch.device | str = "cpu", key: str = "reward"
    ) -> MixReward:
        """All members of a recipe's section, one after the other."""
        loaded = [
            Member(each, rewards.load_reward(each.reward, device, key_of(place, key)))
            for place, each in enumerate(settings.members)
        ]
        return cls(loaded, settings)

    @classmethod
    def check(cls, settings: config.Mix, key: str = "reward", online: bool = False) -> None:
        """Every member by its own kind."""
        for place, member in enumerate(settings.members):
            rewards.check_reward(member.reward, key_of(place, key), online)

    def encode(self, images: Images) -> tuple[Any, ...]:
        """The features of each member, in their order."""
        return tuple(member.reward.encode(images) for member in self.members)

    def score(self, features: tuple[Any, ...], prompts: Sequence[str]) -> PerSample:
        """Weighted sum of the raw scores (b,), on the device of the first member's."""
        weighted = [
            member.settings.weight * score
            for member, score in zip(
                self.members, self.each(features, prompts).values(), strict=True
            )
        ]
        return torch.stack([score.to(weighted[0]) for score in weighted]).sum(0)

    def each(self, features: tuple[Any, ...], prompts: Sequence[str]) -> Mapping[str, PerSample]:
        """The raw scores (b,) of every member, by its label."""
        return {
            member.label: member.reward.score(own, prompts)
            for member, own in zip(self.members, features, strict=True)
        }


def key_of(place: int, key: str = "reward") -> str:
    """Where the reward of a member stands in the recipe: reward.members.0.reward."""
    return f"{key}.members.{place}.reward"
