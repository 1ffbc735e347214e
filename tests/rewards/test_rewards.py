from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from directalign import config
from directalign.config.rewards import _reward_classes
from directalign.interfaces import Reward
from directalign.methods.objective import require_prompt_reader
from directalign.rewards import REWARDS, load_reward, reward_class
from directalign.rewards.clip import ClipReward
from directalign.rewards.common import BaseReward
from directalign.rewards.pixel_statistics import PixelReward
from directalign.types import DirectAlignError


def solid(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, 4, 4)


@pytest.mark.parametrize(("statistic", "value"), [("brightness", 0.5), ("saturation", 0.7), ("redness", 0.6)])
def test_statistics_of_a_solid_colour(statistic: str, value: float) -> None:
    reward = load_reward(config.PixelStatisticsConfig(name="pixels", statistic=statistic, scale=3.0))
    assert isinstance(reward, Reward)
    score = reward.score(reward.encode(solid(0.9, 0.2, 0.4)), ["ignored"])
    assert torch.allclose(score, torch.tensor([3 * value]))


def test_pixel_gradient_points_to_more_of_it() -> None:
    x = solid(0.5, 0.5, 0.5).clone().requires_grad_()
    reward = PixelReward("redness")
    reward.score(reward.encode(x), ["ignored"]).sum().backward()
    assert x.grad is not None
    assert (x.grad[:, 0] > 0).all() and (x.grad[:, 1:] < 0).all()


def test_clip_is_loaded_with_its_scale(clip_folder: Path) -> None:
    reward = load_reward(config.ClipConfig(name="clip", path=str(clip_folder), scale=5.0), "cpu")
    assert isinstance(reward, ClipReward)
    assert reward.scale == 5.0


@pytest.mark.parametrize("form", ["relative", "anchored"])
def test_a_reward_without_a_text_side_has_no_relative_form(form: str, clip_folder: Path) -> None:
    with pytest.raises(DirectAlignError, match=rf"reward\.name pixels .* method\.form {form}"):
        require_prompt_reader(PixelReward("brightness"), form)
    require_prompt_reader(PixelReward("brightness"), "absolute")
    require_prompt_reader(ClipReward.load(str(clip_folder)), form)


def test_every_reward_of_the_schema_is_registered_and_has_its_own_class() -> None:
    names = {each.model_fields["name"].default for each in _reward_classes()} | {"mix"}
    assert names == set(REWARDS)
    for name in names:
        found = reward_class(name)
        assert issubclass(found, BaseReward) and found.name == name
        assert callable(found.from_config) and callable(found.check)


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        (config.ClipConfig(path="a", processor="b"), {"path": "a", "processor": "b"}),
        (config.AestheticConfig(path="h.pth", backbone="b"), {"path": "h.pth", "backbone": "b"}),
        (config.PythonConfig(path="my.py:score"), {"path": "my.py"}),
        (config.PixelStatisticsConfig(statistic="redness"), {}),
    ],
)
def test_a_reward_names_the_files_it_needs(settings: Any, files: dict[str, str]) -> None:
    assert reward_class(settings.name).files(settings) == files


def test_image_size_and_tokens_are_those_of_the_vision_tower(clip_folder: Path) -> None:
    reward = ClipReward.load(str(clip_folder))
    tokens = reward.model.vision_model(torch.zeros(1, 3, reward.image_size, reward.image_size))
    assert tokens.last_hidden_state.shape[1] == reward.tokens_per_image
