"""The registry, rewards named on the command line, pixel statistics, the required text side."""

import pytest
import torch
import yaml

from directalign import config
from directalign.config import rewards as sections
from directalign.config.base import named_sections
from directalign.config.load import recipe_path
from directalign.methods.objective import require_prompt_reader
from directalign.rewards import REWARDS, load_reward, recipe_words, reward_class, reward_settings
from directalign.rewards.clip import ClipReward
from directalign.rewards.common import BaseReward
from directalign.rewards.pixel_statistics import PixelReward
from rewards.cases import refused

RECIPE = "world_srpo"


@pytest.mark.parametrize(
    ("statistic", "value", "gradient"),
    [
        ("brightness", 0.5, [1 / 3] * 3),
        ("saturation", 0.7, [1.0, -1.0, 0.0]),
        ("redness", 0.6, [1.0, -0.5, -0.5]),
    ],
)
def test_statistics_of_a_solid_color(statistic, value, gradient):
    reward = load_reward(config.PixelStatisticsConfig(statistic=statistic, scale=3.0))
    color = torch.tensor([[0.9, 0.2, 0.4]]).requires_grad_()
    score = reward.score(reward.encode(color[..., None, None].expand(1, 3, 4, 4)), ["ignored"])
    assert torch.allclose(score, torch.tensor([3 * value]))
    score.backward()
    assert color.grad is not None and torch.allclose(color.grad, 3 * torch.tensor([gradient]))


@pytest.mark.parametrize("form", ["relative", "anchored"])
def test_a_reward_without_a_text_side_has_no_relative_form(form):
    with refused(rf"reward\.name pixels .* method\.form {form}"):
        require_prompt_reader(PixelReward("brightness"), form)
    require_prompt_reader(PixelReward("brightness"), "absolute")
    require_prompt_reader(ClipReward.load("world:reward"), form)


def test_every_reward_of_the_schema_is_registered_and_has_its_own_class():
    names = {
        each.model_fields["name"].default
        for each in named_sections(sections.Scaled, vars(sections).values())
    } | {"mix"}
    assert names == set(REWARDS)
    for name in names:
        found = reward_class(name)
        assert issubclass(found, BaseReward) and found.name == name


def test_a_reward_is_named_by_its_path_or_by_a_recipe(tmp_path):
    assert reward_settings("world:reward").name == "clip"
    assert recipe_words("world:reward").positive == []
    assert reward_settings(RECIPE).path == "world:reward"
    assert "Realistic photo" in recipe_words(RECIPE).positive
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert reward_settings(str(tmp_path)).name == "siglip"


def test_other_folders_and_mixtures_have_no_name(tmp_path):
    with refused(r"no config\.json there"):
        reward_settings(str(tmp_path))
    for content, complaint in (
        ('{"model_type": "bert"}', "model_type 'bert'"),
        ("[", "not readable as JSON"),
    ):
        (tmp_path / "config.json").write_text(content)
        with refused(complaint):
            reward_settings(str(tmp_path))
    reward = {"name": "clip", "path": "world:reward"}
    members = [{"label": label, "reward": reward} for label in ("first", "second")]
    recipe = yaml.safe_load(recipe_path(RECIPE).read_text())
    recipe["reward"] = {"name": "mix", "members": members}
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(recipe))
    with refused("mix of first, second"):
        reward_settings(str(tmp_path / "mix.yaml"))
