"""Make a black-box reward that fails on one rank fail on all ranks, at the same call.

Otherwise the other ranks would hang in their next collective and no checkpoint could be saved. It
costs one all-reduced number per call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..interfaces import ProcessGroup, Reward
from ..types import DirectAlignError, Images, PerSample
from .mixture import MixReward

Result = TypeVar("Result")
MESSAGE_BYTES = 1000
"""Bytes of an error message that are sent to the other ranks."""


class SynchronizedError(DirectAlignError):
    """A reward failed on some rank; every rank raises this, at the same call."""


class SynchronizedReward:
    """`reward` (`interfaces.Reward`), which must be called equally often on all ranks."""

    def __init__(self, reward: Reward, group: ProcessGroup) -> None:
        self.reward, self.group = reward, group
        self.name, self.reads_prompt = reward.name, reward.reads_prompt
        self.differentiable = reward.differentiable

    def encode(self, images: Images) -> Any:
        """As the reward."""
        return self.reward.encode(images)

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """As the reward. Raises SynchronizedError where it raises DirectAlignError on any rank."""
        return synchronized_call(lambda: self.reward.score(features, prompts), self.group)


def synchronized_call(function: Callable[[], Result], group: ProcessGroup) -> Result:
    """The result of `function`, which every rank calls.

    Raises SynchronizedError on all ranks if one rank raises DirectAlignError.
    """
    if group.size == 1:
        return function()
    results, message = list[Result](), ""
    try:
        results.append(function())
    except DirectAlignError as error:
        message = str(error)
    if float(group.sum(torch.tensor(float(not results)))) > 0:
        raise SynchronizedError(_first_message(message, group))
    return results[0]


def synchronized(reward: Reward, group: ProcessGroup) -> Reward:
    """The same reward, whose black boxes fail on all ranks or on none."""
    if group.size == 1 or reward.differentiable:
        return reward
    if isinstance(reward, MixReward):
        members = [
            replace(member, reward=synchronized(member.reward, group)) for member in reward.members
        ]
        return MixReward(members, reward.settings)
    return SynchronizedReward(reward, group)


def _first_message(message: str, group: ProcessGroup) -> str:
    """The error message of the first rank that failed."""
    content = message.encode()[:MESSAGE_BYTES]
    own = torch.zeros(1, MESSAGE_BYTES, dtype=torch.uint8)
    own[0, : len(content)] = torch.tensor(list(content), dtype=torch.uint8)
    rows = [bytes(row.tolist()).rstrip(b"\0") for row in group.gather(own)]
    rank, text = next((rank, text) for rank, text in enumerate(rows) if text)
    return f"rank {rank}: {text.decode(errors='replace')}"
