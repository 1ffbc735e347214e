"""The reward in the estimate: a CLIP from its folder or an open_clip file, and a clear doubt for every reward that is not counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from memory_runs import a_run

from directalign import config, memory
from directalign.config import Run
from directalign.memory.architecture import preprocessing_of, reward_architecture, reward_doubts
from directalign.types import DirectAlignError
from tiny import tiny_sd  # noqa: F401 (fixture)
from tiny_clip import clip_folder  # noqa: F401 (fixture)
from tiny_open_clip import write_open_clip

CPU = memory.Place("the CPU", 10**12, is_gpu=False)


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs a trace."""
    monkeypatch.setattr("directalign.memory.phases.passing", lambda subject: dict.fromkeys(memory.PHASES, 0))
    monkeypatch.setattr("directalign.memory.phases.says", lambda subject: "")


def with_reward(folder: Path, reward: dict[str, Any], **held_out: dict[str, Any]) -> Run:
    given = a_run("sd", folder).model_dump()
    given["evaluate"] |= {"rewards": held_out}
    return Run.model_validate(given | {"reward": reward})


def test_an_open_clip_file_counts_as_the_transformers_folder(clip_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    file = write_open_clip(tmp_path, clip_folder)
    counted = reward_architecture(config.Clip(path=str(file), processor=str(clip_folder)))
    folder = reward_architecture(config.Clip(path=str(clip_folder)))
    assert counted is not None and folder is not None
    assert counted.count("reward") == folder.count("reward")
    assert preprocessing_of(counted) == preprocessing_of(folder)


def test_the_estimate_has_the_file_and_nothing_to_doubt(tiny_sd: Path, clip_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    file = write_open_clip(tmp_path, clip_folder)
    run = with_reward(tiny_sd, {"name": "clip", "path": str(file), "processor": str(clip_folder)})
    found = memory.estimate(run, CPU)
    assert next(row for row in found.rows if row.part == "reward").sizes["train"] > 0
    assert found.doubts == ()


def test_a_file_that_is_not_here_is_known_by_its_name_or_doubted() -> None:
    hps = reward_architecture(config.Clip(path="xswu/HPSv2/HPS_v2.1_compressed.pt"))
    assert hps is not None and hps.doubts == () and 0.98e9 < hps.count("reward") < 0.99e9
    other = reward_architecture(config.Clip(path="maker/model/open_clip_pytorch_model.bin"))
    assert other is not None and "is not downloaded yet and not known here" in other.doubts[0]
    with pytest.raises(DirectAlignError, match=r"reward\.path: /nowhere/weights\.pt: no such file"):
        reward_architecture(config.Clip(path="/nowhere/weights.pt"))


def test_every_reward_that_is_not_counted_is_doubted_once(tiny_sd: Path) -> None:  # noqa: F811
    siglip, clip, pixels = {"name": "siglip", "path": "a/b"}, {"name": "clip", "path": "world:reward"}, {"name": "pixels", "statistic": "redness"}
    remote = {"name": "remote", "url": "http://localhost:1/"}
    assert reward_doubts(with_reward(tiny_sd, clip)) == reward_doubts(with_reward(tiny_sd, pixels)) == reward_doubts(with_reward(tiny_sd, remote)) == ()
    assert reward_doubts(with_reward(tiny_sd, siglip)) == ("reward: memory of reward siglip is not in the estimate",)
    mix = {"name": "mix", "members": [{"label": label, "reward": each} for label, each in (("a", clip), ("b", pixels), ("c", siglip))]}
    assert reward_doubts(with_reward(tiny_sd, mix, other=clip)) == (
        "reward.members.0: memory of reward clip is not in the estimate",
        "reward.members.2: memory of reward siglip is not in the estimate",
        "evaluate.rewards.other: memory of reward clip is not in the estimate",
    )
    assert reward_doubts(with_reward(tiny_sd, siglip))[0] in memory.estimate(with_reward(tiny_sd, siglip), CPU).doubts
