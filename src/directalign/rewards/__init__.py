"""Frozen reward models. A new reward is one file, its settings in config/rewards.py, one line here.

A class has `from_config`, `check` and the attributes of `common.BaseReward`, which the rest of the
package reads instead of tables by name. `key` is the section's key in the recipe (reward,
reward.members.0.reward, ...), for errors.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from .. import config
from ..interfaces import Reward

__all__ = ["REWARDS", "check_reward", "load_reward", "reward_class"]

REWARDS = {
    "clip": "clip:ClipReward",
    "siglip": "clip:SiglipReward",
    "image_reward": "image_reward:ImageReward",
    "aesthetic": "aesthetic:AestheticReward",
    "mps": "mps:MpsReward",
    "vlm": "qwen_vl:VlmReward",
    "hpsv3": "hpsv3:Hpsv3Reward",
    "pixels": "pixel_statistics:PixelReward",
    "python": "python_function:PythonReward",
    "remote": "http:HttpReward",
    "mix": "mixture:MixReward",
}
"""`name` in a recipe to module:class, imported when first needed."""


def reward_class(name: str) -> Any:
    """The class of a reward by its `name` in a recipe."""
    module, _, cls = REWARDS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), cls)


def load_reward(
    reward: config.RewardConfig, device: torch.device | str = "cpu", key: str = "reward"
) -> Reward:
    """The frozen reward of a recipe section. DirectAlignError, naming `key`, for bad files."""
    return reward_class(reward.name).from_config(reward, device, key)


def check_reward(reward: config.RewardConfig, key: str = "reward", online: bool = False) -> None:
    """Raise what `load_reward` would, as far as it is known without reading weights.

    The network is used only if `online`.
    """
    reward_class(reward.name).check(reward, key, online)
