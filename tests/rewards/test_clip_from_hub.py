"""A CLIP reward by its name on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from directalign.rewards.clip import ClipReward
from directalign.types import DirectAlignError
from hub_downloads import download_hub, point_at

PROMPTS = ["a red star", "a blue ring"]


def test_it_scores_as_the_folder_does_and_fetches_one_format(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    local = ClipReward.load(str(clip_folder))
    with download_hub() as served:
        served.publish(
            "maker/clip",
            clip_folder,
            pytorch_model_dot_bin=b"pickled",
            model_dot_fp16_dot_safetensors=b"half",
            README_dot_md=b"words",
        )
        point_at(served.url, tmp_path, monkeypatch)
        reward = ClipReward.load("maker/clip")
        assert {name for name in served.fetched if "model" in name} == {
            "model.safetensors"
        } and "README.md" not in served.fetched
    assert torch.equal(
        reward.score(reward.encode(images), PROMPTS), local.score(local.encode(images), PROMPTS)
    )


def test_tokenizer_and_image_settings_may_come_from_elsewhere(
    clip_folder: Path, tmp_path: Path
) -> None:
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(clip_folder / name)
    with pytest.raises(DirectAlignError, match="preprocessor_config"):
        ClipReward.load(str(bare))
    reward, local = (
        ClipReward.load(str(bare), processor=str(clip_folder)),
        ClipReward.load(str(clip_folder)),
    )
    assert torch.equal(
        reward.score(reward.encode(images), PROMPTS), local.score(local.encode(images), PROMPTS)
    )


def test_a_name_that_is_neither_folder_nor_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with download_hub() as served:
        point_at(served.url, tmp_path, monkeypatch)
        with pytest.raises(
            DirectAlignError,
            match=r"reward\.path: maker/nothing: no such folder here, and at .* no such repository",
        ):
            ClipReward.load("maker/nothing")
