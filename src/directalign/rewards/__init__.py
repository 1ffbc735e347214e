"""Frozen rewards, what is asked of them (`preference`), and the one place where a recipe's `reward` section becomes one of them.

Each kind is a module with two functions: `load(settings, device, key)` gives the reward, `check(settings, key, online)` finds what is
wrong before any weight is loaded. `key` is where the section stands in the recipe: reward, reward.members.0.reward, ...
"""

from __future__ import annotations

from typing import Any

import torch

from .. import config
from ..interfaces import Reward
from . import aesthetic, black_box, clip_like, hpsv3, image_reward, mixture, mps, pixels, remote, siglip, vlm
from .black_box import BlackBoxReward
from .clip_like import ClipReward
from .pixels import PixelReward
from .preference import NO_GRADIENT, require_gradient, require_text_side

__all__ = ["BlackBoxReward", "ClipReward", "KINDS", "NO_GRADIENT", "PixelReward", "check_reward", "load_reward", "require_gradient", "require_text_side"]

KINDS: dict[str, Any] = {
    "clip": clip_like,
    "siglip": siglip,
    "image_reward": image_reward,
    "aesthetic": aesthetic,
    "mps": mps,
    "vlm": vlm,
    "hpsv3": hpsv3,
    "pixels": pixels,
    "python": black_box,
    "remote": remote,
    "mix": mixture,
}


def load_reward(reward: config.Reward, device: torch.device | str = "cpu", key: str = "reward") -> Reward:
    """The reward of a recipe, frozen, on `device`; whatever is wrong with its files is one error that names the key below `key`."""
    return KINDS[reward.name].load(reward, device, key)


def check_reward(reward: config.Reward, key: str = "reward", online: bool = False) -> None:
    """What `load_reward` would refuse, as far as it can be known without weights; from the hub only when `online`."""
    KINDS[reward.name].check(reward, key, online)
