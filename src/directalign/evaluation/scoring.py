"""What a reward says of many images under several phrasings, batch by batch and without gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..interfaces import Reward
from ..metrics import MEMBER
from ..rewards.mixture import MixReward
from ..types import Images, PerSample

BARE = ("",)
"""The phrases of the question that puts nothing before the prompt."""

Asked = Mapping[str, Sequence[str]]
"""The name of each score, and the phrases whose scores are averaged for it."""


@torch.no_grad()
def scored(reward: Reward, asked: Asked, images: Images, prompts: Sequence[str], batch_size: int, device: torch.device) -> dict[str, PerSample]:
    """Each of `asked` as (b,) on the CPU, those without a phrase left out; of a mixture also every member's plain score."""
    starts = range(0, len(images), batch_size)
    parts = [_score_batch(reward, asked, images[i : i + batch_size].to(device), prompts[i : i + batch_size]) for i in starts]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _score_batch(reward: Reward, asked: Asked, images: Images, prompts: Sequence[str]) -> dict[str, PerSample]:
    features = reward.encode(images)
    scores = {}
    for name, phrases in asked.items():
        each = [reward.score(features, [f"{phrase}. {prompt}" if phrase else prompt for prompt in prompts]) for phrase in phrases]
        if each:
            scores[name] = torch.stack(each).mean(0).float().cpu()
    if isinstance(reward, MixReward):
        scores |= {f"{MEMBER}{label}": score.float().cpu() for label, score in reward.each(features, prompts).items()}
    return scores
