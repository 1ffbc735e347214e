"""Rewards from the hub: equal scores, only needed files fetched, no weights by checks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from directalign import config
from directalign.rewards import check_reward, load_reward
from directalign.types import DirectAlignError
from hub_stand_in import hub_stand_in, point_at
from published_layouts import images_drawn
from rewards.cases import PROMPTS

WEIGHTS = (".safetensors", ".pt", ".bin", ".h5")
PARTS = ("path", "processor", "backbone")


def scores(settings: Any) -> torch.Tensor:
    reward = load_reward(settings)
    return reward.score(reward.encode(images_drawn(2, 40, 36, 0)), PROMPTS)


@pytest.mark.parametrize(
    "name", ["clip", "open_clip", "siglip", "image_reward", "improved", "qwen2_5_vl", "hpsv3"]
)
def test_scores_are_equal_and_checks_fetch_no_weights(
    name: str,
    sections: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = sections(name)
    moved: dict[str, str] = {}
    with hub_stand_in() as served:
        for part in PARTS:
            path = Path(getattr(local, part, None) or "")
            if path == Path() or (part == "path" and name == "improved"):
                continue  # an aesthetic head is a local file here
            published = Path(tmp_path / part)
            if path.is_dir():
                shutil.copytree(path, published)
                moved[part] = f"maker/{part}"
            else:
                published.mkdir()
                for file in path.parent.iterdir():
                    if file.is_file():
                        shutil.copy(file, published)
                moved[part] = f"maker/{part}/{path.name}"
            extra = {"pytorch_model_dot_bin": b"pickled", "README_dot_md": b"text"}
            served.publish(f"maker/{part}", published, **extra)
        point_at(served.url, tmp_path / "cache", monkeypatch)
        settings = local.model_copy(update=moved)
        check_reward(settings)
        assert not served.fetched
        check_reward(settings, online=True)
        assert not [file for file in served.fetched if file.endswith(WEIGHTS)]
        assert torch.equal(scores(settings), scores(local))
        assert not {"pytorch_model.bin", "README.md"} & set(served.fetched)
        wrong = settings.model_copy(update={"path": "maker/path/absent.pt"})
        if Path(moved.get("path", "")).suffix in WEIGHTS:
            with pytest.raises(
                DirectAlignError, match=r"held\.path: .*: maker/path has no file absent\.pt"
            ):
                check_reward(wrong, "held", online=True)


def test_tokenizer_and_image_settings_of_another_folder(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(clip_folder / name)
    settings = config.ClipConfig(path=str(tmp_path), processor=str(clip_folder))
    assert torch.equal(scores(settings), scores(config.ClipConfig(path=str(clip_folder))))


def test_a_name_that_is_neither_folder_nor_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_stand_in() as served:
        point_at(served.url, tmp_path, monkeypatch)
        with pytest.raises(
            DirectAlignError,
            match=r"reward\.path: maker/nothing: no such folder here, and at .* no such repository",
        ):
            load_reward(config.ClipConfig(path="maker/nothing"))
