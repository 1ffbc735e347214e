"""Published files by their names on the hub: they score as the local ones do, and checking fetches settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from directalign import config
from directalign.rewards import check_reward, load_reward
from directalign.types import DirectAlignError
from hub_downloads import DownloadHub, download_hub, point_at
from published_layouts import images_drawn
from recorded_rewards import write_aesthetic, write_image_reward

PROMPTS = ["a red star", "a blue ring"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadHub]:
    with download_hub() as served:
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served


def scores(settings: config.SingleRewardConfig) -> torch.Tensor:
    reward = load_reward(settings)
    return reward.score(reward.encode(images_drawn(2, 40, 36, 0)), PROMPTS)


def test_image_reward(hub: DownloadHub, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    weights, reader = write_image_reward(tmp_path / "made")
    local = scores(config.ImageRewardConfig(path=str(weights), processor=str(reader)))
    hub.publish("google-bert/bert-base-uncased", reader, model_dot_safetensors=b"weights", vocab_dot_h5=b"weights")
    hub.publish("maker/image-reward", weights.parent, README_dot_md=b"words")
    settings = config.ImageRewardConfig(path="maker/image-reward/ImageReward.pt")
    check_reward(settings)
    assert not hub.fetched
    check_reward(settings, online=True)
    assert "tokenizer.json" in hub.fetched and "ImageReward.pt" not in hub.fetched
    assert torch.equal(scores(settings), local)
    assert {"ImageReward.pt", "med_config.json"} <= set(hub.fetched) and not {"README.md", "model.safetensors"} & set(hub.fetched)
    with pytest.raises(DirectAlignError, match=r"reward\.path: maker/image-reward/Other\.pt: maker/image-reward has no file Other\.pt"):
        check_reward(config.ImageRewardConfig(path="maker/image-reward/Other.pt"), online=True)


def test_aesthetic(hub: DownloadHub, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    head, backbone = write_aesthetic(tmp_path / "made", "improved")
    local = scores(config.AestheticConfig(path=str(head), backbone=str(backbone)))
    hub.publish("maker/clip", backbone, pytorch_model_dot_bin=b"pickled")
    settings = config.AestheticConfig(path=str(head), backbone="maker/clip")
    check_reward(settings)
    assert not hub.fetched
    check_reward(settings, online=True)
    assert set(hub.fetched) == {"config.json", "preprocessor_config.json"}
    assert torch.equal(scores(settings), local)
    assert "pytorch_model.bin" not in hub.fetched
    other, siglip = write_aesthetic(tmp_path / "made", "v2_5")
    hub.publish("maker/siglip", siglip)
    with pytest.raises(DirectAlignError, match=r"reward\.backbone: .* holds a model of type siglip; give the folder of a transformers CLIPModel"):
        check_reward(config.AestheticConfig(path=str(head), backbone="maker/siglip"), online=True)
    assert scores(config.AestheticConfig(path=str(other), backbone="maker/siglip")).shape == (2,)
