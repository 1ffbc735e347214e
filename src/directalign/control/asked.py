"""Which reward a command is asked about: a recipe's own, or a CLIP or SigLIP named by its folder or hub id.

A recipe says everything, for any single reward. A bare path says as much as its `config.json` does: the kind of model, and no scale.
"""

from __future__ import annotations

import json
from pathlib import Path

from .. import config, hub
from ..config_loading import load_run
from ..types import DirectAlignError
from ..world.assets import resolve

RECIPES = (".yaml", ".yml")
OPTION = "--reward"
MODEL_TYPES: dict[str, type[config.Clip] | type[config.Siglip]] = {"clip": config.Clip, "siglip": config.Siglip, "siglip2": config.Siglip}
"""By `model_type` of a folder's config.json: the kinds of reward that a bare path can mean."""


def reward_settings(text: str) -> config.SingleReward:
    """The settings of the reward that `text` names: a recipe (.yaml), a CLIP or SigLIP folder, a hub id, or world:reward.

    Raises:
        DirectAlignError: a mixture of rewards, a folder without config.json, a model of another kind, and whatever is wrong with a recipe.
    """
    if Path(text).suffix not in RECIPES:
        return _kind(text)(path=text)
    reward = load_run(text).reward
    if isinstance(reward, config.Mix):
        labels = ", ".join(member.label for member in reward.members)
        raise DirectAlignError(f"{text}: reward.name: mix of {labels}: give a recipe with one reward alone")
    return reward


def recipe_words(text: str) -> config.ControlPhrases:
    """The control words of a recipe; none where `text` names a model."""
    return load_run(text).method.words if Path(text).suffix in RECIPES else config.ControlPhrases()


def _kind(path: str) -> type[config.Clip] | type[config.Siglip]:
    folder = hub.download(path, ("config.json",), OPTION) if hub.is_hub_id(path) else resolve(path)
    file = folder / "config.json"
    if not file.is_file():
        raise DirectAlignError(f"{OPTION} {path}: no config.json there; give a CLIP or SigLIP folder, a hub id, world:reward, or a recipe (.yaml)")
    try:
        model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DirectAlignError(f"{file}: not readable as JSON settings ({error}); copy it again from the original checkpoint") from error
    if model_type not in MODEL_TYPES:
        raise DirectAlignError(f"{file}: model_type {model_type!r} is neither of {', '.join(MODEL_TYPES)}; name another kind of reward in a recipe (.yaml)")
    return MODEL_TYPES[model_type]
