"""Make a black-box reward that fails on one rank fail on all ranks, at the same call.

Otherwise the other ranks would hang in their next collective and no checkpoint could be saved. It costs one all-reduced
number per call, little beside a request or a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..interfaces import ProcessGroup, Reward
from ..types import DirectAlignError, Images, PerSample
from .mixture import MixReward

Answer = TypeVar("Answer")
LONGEST = 1000
"""Bytes of an error message that are sent to the other ranks."""


class SynchronizedError(DirectAlignError):
    """A reward failed on some rank; every rank raises this, at the same call."""


class SynchronizedReward:
    """`reward` (`interfaces.Reward`), which must be called equally often on all ranks."""

    def __init__(self, reward: Reward, together: ProcessGroup) -> None:
        self.reward, self.together = reward, together
        self.name, self.reads_prompt, self.differentiable = (
            reward.name,
            reward.reads_prompt,
            reward.differentiable,
        )

    def encode(self, images: Images) -> Any:
        """As the reward."""
        return self.reward.encode(images)

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """As the reward. Raises SynchronizedError where it raises DirectAlignError on any rank."""
        return synchronized_call(lambda: self.reward.score(features, prompts), self.together)


def synchronized_call(work: Callable[[], Answer], together: ProcessGroup) -> Answer:
    """The result of `work`, which every rank calls; a DirectAlignError on one rank is a SynchronizedError on all."""
    if together.size == 1:
        return work()
    answers, words = list[Answer](), ""
    try:
        answers.append(work())
    except DirectAlignError as error:
        words = str(error)
    if float(together.sum(torch.tensor(float(not answers)))) > 0:
        raise SynchronizedError(_first(words, together))
    return answers[0]


def synchronized(reward: Reward, together: ProcessGroup) -> Reward:
    """The same reward, whose black boxes fail on all ranks or on none."""
    if together.size == 1 or reward.differentiable:
        return reward
    if isinstance(reward, MixReward):
        return MixReward(
            [
                replace(member, reward=synchronized(member.reward, together))
                for member in reward.members
            ],
            reward.settings,
        )
    return SynchronizedReward(reward, together)


def _first(words: str, together: ProcessGroup) -> str:
    """The error message of the first rank that failed."""
    own = torch.zeros(1, LONGEST, dtype=torch.uint8)
    said = words.encode()[:LONGEST]
    own[0, : len(said)] = torch.tensor(list(said), dtype=torch.uint8)
    rows = [
        bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in together.gather(own)
    ]
    rank, text = next((rank, text) for rank, text in enumerate(rows) if text)
    return f"rank {rank}: {text}"
