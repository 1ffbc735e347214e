"""Mistakes inside the lists and named sections of a recipe are found under the keys that its writer knows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from directalign.config.load import load_run
from directalign.types import DirectAlignError

RECIPE: dict[str, Any] = {
    "name": "test",
    "model": {"family": "flux", "path": "world:flux"},
    "reward": {
        "name": "mix",
        "members": [
            {"label": "taste", "reward": {"name": "clip", "path": "world:reward"}},
            {"label": "dark", "form": "absolute", "reward": {"name": "pixels", "statistic": "brightness"}},
        ],
    },
    "method": {"words": {"positive": ["Photo"], "negative": ["Render"]}},
    "data": {"prompts": "world"},
    "train": {"num_steps": 3},
    "evaluate": {"rewards": {"second": {"name": "clip", "path": "world:second_reward"}}},
}
KINDS = "clip, siglip, image_reward, aesthetic, mps, vlm, hpsv3, pixels, python, remote"


def complaint(folder: Path, changed: str, value: Any) -> str:
    recipe = section = copy.deepcopy(RECIPE)
    *above, last = [int(key) if key.isdigit() else key for key in changed.split("/")]
    for key in above:
        section = section[key]
    section[last] = value
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(DirectAlignError) as raised:
        load_run(folder / "r.yaml")
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{folder / 'r.yaml'}: ")


@pytest.mark.parametrize(
    ("changed", "value", "expected"),
    [
        ("reward/members/0/wieght", 2, "reward.members.0.wieght: unknown key; did you mean 'weight'?"),
        ("reward/members/1/reward/statistics", "redness", "reward.members.1.reward.statistics: unknown key; did you mean 'statistic'?"),
        ("reward/members/0/reward", {"name": "clip"}, "reward.members.0.reward.path: missing; add it (A transformers folder"),
        ("reward/members/0/reward", {"path": "x"}, f"reward.members.0.reward: missing key name; add it, one of {KINDS}"),
        ("reward/members/0/reward/name", "clp", f"reward.members.0.reward: name 'clp' is none of {KINDS}; did you mean 'clip'?"),
        ("reward/members/0/reward/name", "mix", f"reward.members.0.reward: name 'mix' is none of {KINDS}"),
        ("reward/members/0/weight", "much", 'reward.members.0.weight: got "much", and it should be a valid number'),
        ("reward/members/0/label", "a b", 'reward.members.0.label: got "a b", and it should match pattern'),
        ("reward/members/1/form", "relative", "reward.members.1.form: got \"relative\", and it is one of 'method' or 'absolute'"),
        ("reward/members/1/words", {"positiv": []}, "reward.members.1.words.positiv: unknown key; did you mean 'positive'?"),
        ("reward/members/1/words", {"positive": [3]}, "reward.members.1.words.positive.0: got 3, and it should be a valid string"),
        ("reward/members/1/words", "Photo", 'reward.members.1.words: got "Photo", and it should be an object; write a section'),
        ("reward/members/0/anchor", {"tolerance": 0}, "reward.members.0.anchor.tolerance: got 0, and it should be greater than 0"),
        ("reward/members/0", "clip", 'reward.members.0: got "clip", and it should be an object; write a section'),
        ("reward/members/0/label", "dark", "reward: two members are called dark: give each its own label"),
        ("reward/members", {"dark": 1}, 'reward.members: got {"dark": 1}, and it should be a valid array; write a list'),
        ("reward/members", [], "reward.members: got [], and it should have at least 2 items"),
        ("evaluate/rewards/second", {"name": "clip"}, "evaluate.rewards.second.path: missing; add it (A transformers folder"),
        ("evaluate/rewards/second", {"path": "x"}, f"evaluate.rewards.second: missing key name; add it, one of {KINDS}"),
        ("evaluate/rewards/second/name", "clap", f"evaluate.rewards.second: name 'clap' is none of {KINDS}; did you mean 'clip'?"),
        ("evaluate/rewards/second/scal", 2, "evaluate.rewards.second.scal: unknown key; did you mean 'scale'?"),
        ("evaluate/rewards/second/path", 3, "evaluate.rewards.second.path: got 3, and it should be a valid string"),
        ("evaluate/rewards/second", "clip", 'evaluate.rewards.second: got "clip", and it should be an object; write a section'),
        ("evaluate/rewards", ["clip"], 'evaluate.rewards: got ["clip"], and it should be an object; write a section: names of your own'),
    ],
)
def test_a_mistake_is_named_by_its_place(tmp_path: Path, changed: str, value: Any, expected: str) -> None:
    assert complaint(tmp_path, changed, value).startswith(expected)
