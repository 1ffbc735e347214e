"""The reward that `--reward` names: a folder, `world:reward`, or a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from directalign.config.load import recipe_path
from directalign.rewards import recipe_words, reward_settings
from directalign.types import DirectAlignError

RECIPE = "world_srpo"


def test_a_reward_is_named_by_its_path_or_by_a_recipe(tmp_path: Path) -> None:
    assert reward_settings("world:reward").name == "clip"
    assert recipe_words("world:reward").positive == []
    assert reward_settings(RECIPE).path == "world:reward"
    assert "Realistic photo" in recipe_words(RECIPE).positive
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert reward_settings(str(tmp_path)).name == "siglip"


def test_other_folders_and_mixtures_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(DirectAlignError, match=r"no config\.json there"):
        reward_settings(str(tmp_path))
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(DirectAlignError, match="model_type 'bert'"):
        reward_settings(str(tmp_path))
    config.write_text("[")
    with pytest.raises(DirectAlignError, match="not readable as JSON"):
        reward_settings(str(tmp_path))
    reward = {"name": "clip", "path": "world:reward"}
    members = [{"label": label, "reward": reward} for label in ("first", "second")]
    recipe = yaml.safe_load(recipe_path(RECIPE).read_text())
    recipe["reward"] = {"name": "mix", "members": members}
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(DirectAlignError, match="mix of first, second"):
        reward_settings(str(tmp_path / "mix.yaml"))
