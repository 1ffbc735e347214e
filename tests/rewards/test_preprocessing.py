from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.models.clip import image_processing_pil_clip

from directalign.rewards.common import Preprocessing
from directalign.types import DirectAlignError


@pytest.mark.parametrize(
    "size", [(64, 64), (48, 40), (40, 57), (32, 32), (33, 120), (20, 27), (25, 21), (200, 130)]
)
def test_close_to_transformers(clip_folder: Path, size: tuple[int, int]) -> None:
    images = 0.2 + 0.6 * torch.rand(
        2, 3, *size, generator=torch.Generator().manual_seed(3)
    )  # theirs cuts overshoot between its two passes
    processor = image_processing_pil_clip.CLIPImageProcessorPil.from_pretrained(clip_folder)
    theirs = processor(
        images=list((images * 255).round().to(torch.uint8).numpy()), return_tensors="pt"
    )["pixel_values"]
    ours = Preprocessing.read(clip_folder)
    std = torch.tensor(ours.std)[:, None, None]
    mean = torch.tensor(ours.mean)[:, None, None]
    shown = ours(images) * std + mean
    assert shown.shape == (2, 3, 32, 32)
    assert (shown - (theirs * std + mean)).abs().max() < 2e-2


def test_equal_size_is_left_as_it_is() -> None:
    images = torch.rand(1, 3, 8, 8)
    same = Preprocessing(size=8, crop=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.allclose(same(images), images * 2 - 1, atol=1e-6)


def test_size_may_be_height_and_width() -> None:
    stretched = Preprocessing(
        size=(8, 12), crop=(6, 6), mean=(0.0,) * 3, std=(1.0,) * 3, mode="bilinear"
    )
    assert stretched(torch.rand(1, 3, 20, 20)).shape == (1, 3, 6, 6)


def test_settings_of_newer_transformers_are_read(clip_folder: Path, tmp_path: Path) -> None:
    settings = json.loads((clip_folder / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert Preprocessing.read(tmp_path) == Preprocessing.read(clip_folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", None), ("crop_size", {"shortest_edge": 8}), ("resample", 1), ("image_mean", None)],
)
def test_unreadable_settings_name_the_file(
    clip_folder: Path, tmp_path: Path, key: str, value: object
) -> None:
    settings = json.loads((clip_folder / "preprocessor_config.json").read_text())
    settings.pop(key) if value is None else settings.update({key: value})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(DirectAlignError, match=r"preprocessor_config\.json"):
        Preprocessing.read(tmp_path)


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DirectAlignError, match=r"preprocessor_config\.json: not readable as JSON"):
        Preprocessing.read(tmp_path)
