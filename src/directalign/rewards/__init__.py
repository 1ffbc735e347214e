"""Differentiable, frozen rewards, and the one place where a recipe's `reward` section becomes one of them."""

from __future__ import annotations

import torch

from .. import config
from ..interfaces import Reward
from ..types import DirectAlignError
from .clip_like import ClipReward
from .pixels import PixelReward

__all__ = ["ClipReward", "PixelReward", "load_reward", "require_text_side"]


def load_reward(reward: config.Reward, device: torch.device | str = "cpu") -> Reward:
    """The reward of a recipe; a setting that its kind needs and does not have is an error that names the key."""
    if reward.name == "clip":
        if reward.path is None:
            raise DirectAlignError("reward.path is missing: reward.name clip needs a transformers CLIPModel folder, or world:reward")
        return ClipReward.load(reward.path, reward.scale, device)
    if reward.statistic is None:
        raise DirectAlignError("reward.statistic is missing: reward.name pixels needs brightness, saturation or redness")
    return PixelReward(reward.statistic, reward.scale)


def require_text_side(reward: Reward, form: str) -> None:
    """Refuse a relative or anchored form of a reward that ignores the prompt: both phrasings would get one score."""
    if form != "absolute" and not reward.reads_prompt:
        raise DirectAlignError(
            f"reward.name {reward.name} ignores prompts, so method.form {form} has no two scores to compare: "
            "set method.form: absolute, or take a reward with a text side (reward.name: clip)"
        )
