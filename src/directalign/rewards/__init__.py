"""Frozen reward models. A new reward is one file, its settings in config/rewards.py, one line here.

A class has `from_config`, `check` and the attributes of `common.BaseReward`, which the rest of the
package reads instead of tables by name. `key` is the section's key in the recipe (reward,
reward.members.0.reward, ...), for errors.

On the command line a reward is named by a recipe (.yaml) with a single reward, a CLIP or SigLIP
folder, a hub id, or `world:reward`: see `reward_settings`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from .. import config
from ..config.load import is_recipe, load_run
from ..interfaces import Reward
from ..io import hub
from ..toyworld.assets import resolve
from ..types import DirectAlignError

REWARDS = {
    "clip": "clip:ClipReward",
    "altclip": "clip:AltClipReward",
    "siglip": "clip:SiglipReward",
    "latent_clip": "latent_clip:LatentClipReward",
    "image_reward": "image_reward:ImageReward",
    "aesthetic": "aesthetic:AestheticReward",
    "mps": "mps:MpsReward",
    "vlm": "qwen_vl:VlmReward",
    "hpsv3": "hpsv3:Hpsv3Reward",
    "pixels": "pixel_statistics:PixelReward",
    "preservation": "preservation:PreservationReward",
    "ocr": "ocr:OcrReward",
    "python": "black_box:PythonReward",
    "remote": "black_box:HttpReward",
    "vlm_api": "vlm_api:VlmApiReward",
    "mix": "mixture:MixReward",
}
"""`name` in a recipe to module:class, imported when first needed."""
OPTION = "--reward"
DualEncoderConfig = type[config.ClipConfig] | type[config.AltClipConfig] | type[config.SiglipConfig]
MODEL_TYPES: dict[str, DualEncoderConfig] = {
    "clip": config.ClipConfig,
    "altclip": config.AltClipConfig,
    "siglip": config.SiglipConfig,
    "siglip2": config.SiglipConfig,
}
"""Reward config by the `model_type` of config.json."""


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


def reward_cuts(
    reward: config.SingleRewardConfig,
    key: str,
    prompts: Sequence[str],
    phrases: Sequence[str] = (),
    online: bool = False,
) -> list[str]:
    """A sentence if the reward ignores the end of some prompts under `phrases`, else nothing.

    No weights are read, and nothing from the hub unless `online`. Raises: DirectAlignError for a
    prompt that the reward cannot score.
    """
    from .common import cut_warnings  # with transformers, which importing this package needs not

    kind = reward_class(reward.name)
    kind.check_prompts(prompts)
    reader = kind.read_text(reward, key, online)
    return cut_warnings(f"{key} ({reward.name})", reader, prompts, phrases)


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
    """Load the reward that `--reward` names (or its resolved config), frozen, on `device`.

    Raises: DirectAlignError as `reward_settings`, and for a reward that does not see images.
    """
    settings = reward_settings(reward) if isinstance(reward, str) else reward
    loaded = load_reward(settings, device, OPTION)
    if loaded.sees == "latents":
        raise DirectAlignError(
            f"{OPTION}: {settings.name} sees latents, and this command has images: give a reward "
            "that sees these"
        )
    return loaded


def recipe_words(text: str) -> config.ControlPhrases:
    """Control phrases of the recipe; empty if `text` names a model."""
    return load_run(text).method.control_phrases if is_recipe(text) else config.ControlPhrases()


def _config_class(path: str) -> DualEncoderConfig:
    from .common import read_json  # with transformers, which importing this package needs not

    is_hub = hub.is_hub_id(path)
    folder = hub.download(path, ("config.json",), OPTION) if is_hub else resolve(path)
    file = folder / "config.json"
    if not file.is_file():
        raise DirectAlignError(
            f"{OPTION} {path}: no config.json there; give a CLIP or SigLIP folder, a hub id, "
            "world:reward, or a recipe (.yaml)"
        )
    model_type = read_json(file).get("model_type")
    if model_type not in MODEL_TYPES:
        raise DirectAlignError(
            f"{file}: model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}; name other "
            "kinds of reward in a recipe (.yaml)"
        )
    return MODEL_TYPES[model_type]
