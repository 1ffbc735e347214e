"""Frozen rewards, what is asked of them (`preference`), and the one place where a recipe's `reward` section becomes one of them."""

from __future__ import annotations

import torch

from .. import config
from ..interfaces import Reward
from ..types import DirectAlignError
from .black_box import BlackBoxReward
from .clip_like import ClipReward
from .pixels import PixelReward
from .preference import require_gradient, require_text_side

__all__ = ["BlackBoxReward", "ClipReward", "PixelReward", "load_reward", "require_gradient", "require_text_side"]


def load_reward(reward: config.Reward, device: torch.device | str = "cpu") -> Reward:
    """The reward of a recipe; a setting that its kind needs and does not have is an error that names the key."""
    if reward.name == "clip":
        if reward.path is None:
            raise DirectAlignError("reward.path is missing: reward.name clip needs a transformers CLIPModel folder, or world:reward")
        return ClipReward.load(reward.path, reward.scale, device, reward.gradient_checkpointing, reward.processor)
    if reward.name == "python":
        if reward.path is None:
            raise DirectAlignError("reward.path is missing: reward.name python needs file.py:function")
        return BlackBoxReward.load(reward.path, reward.scale)
    if reward.statistic is None:
        raise DirectAlignError("reward.statistic is missing: reward.name pixels needs brightness, saturation or redness")
    return PixelReward(reward.statistic, reward.scale)
