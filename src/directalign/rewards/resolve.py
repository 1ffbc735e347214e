"""Resolve and load a reward named on the command line.

Accepted names: a recipe (.yaml) with a single reward, a CLIP or SigLIP folder, a hub id, or
`world:reward`. A folder or hub id is identified by `model_type` in its config.json.
"""

from __future__ import annotations

import json

import torch

from .. import config
from ..config.load import is_recipe, load_run
from ..interfaces import Reward
from ..io import hub
from ..toyworld.assets import resolve
from ..types import DirectAlignError
from . import load_reward

OPTION = "--reward"
MODEL_TYPES: dict[str, type[config.ClipConfig] | type[config.SiglipConfig]] = {
    "clip": config.ClipConfig,
    "siglip": config.SiglipConfig,
    "siglip2": config.SiglipConfig,
}
"""Reward config by the `model_type` of config.json."""


def reward_settings(text: str) -> config.SingleRewardConfig:
    """Config of the reward that `text` names.

    Raises:
        DirectAlignError: a mixture, a folder without config.json, an unsupported model type, or
            an invalid recipe.
    """
    if not is_recipe(text):
        return _config_class(text)(path=text)
    reward = load_run(text).reward
    if isinstance(reward, config.MixtureConfig):
        labels = ", ".join(member.label for member in reward.members)
        raise DirectAlignError(
            f"{text}: reward.name: mix of {labels}: give a recipe with a single reward"
        )
    return reward


def load_named_reward(
    reward: str | config.SingleRewardConfig, device: torch.device | str = "cpu"
) -> Reward:
    """Load the reward that `--reward` names (or its resolved config), frozen, on `device`."""
    settings = reward_settings(reward) if isinstance(reward, str) else reward
    return load_reward(settings, device, OPTION)


def recipe_words(text: str) -> config.ControlPhrases:
    """Control phrases of the recipe; empty if `text` names a model."""
    return load_run(text).method.control_phrases if is_recipe(text) else config.ControlPhrases()


def _config_class(path: str) -> type[config.ClipConfig] | type[config.SiglipConfig]:
    is_hub = hub.is_hub_id(path)
    folder = hub.download(path, ("config.json",), OPTION) if is_hub else resolve(path)
    file = folder / "config.json"
    if not file.is_file():
        raise DirectAlignError(
            f"{OPTION} {path}: no config.json there; give a CLIP or SigLIP folder, a hub id, "
            "world:reward, or a recipe (.yaml)"
        )
    try:
        model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DirectAlignError(
            f"{file}: not readable as JSON settings ({error}); copy it again from the original "
            "checkpoint"
        ) from error
    if model_type not in MODEL_TYPES:
        raise DirectAlignError(
            f"{file}: model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}; name other "
            "kinds of reward in a recipe (.yaml)"
        )
    return MODEL_TYPES[model_type]
