"""Preprocessing against the library's own, which rounds to 8 bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from directalign.rewards.qwen_vl import CLIP_MEAN, CLIP_STD, VlmPixels
from directalign.types import DirectAlignError
from tiny_vlm import vlm_folder, write_reader

__all__ = ["vlm_folder"]

SIZES = {
    (40, 40): 0,
    (36, 60): 60,
    (64, 48): 0,
    (90, 31): 0,
    (8, 10): 0,
    (13, 12): 0,
    (200, 90): 0,
    (11, 50): 0,
    (301, 299): 0,
}
"""As it is, to the nearest cell, too small, too large, oblong; and how far off black and white the
levels keep. Where an image gets lower and wider, Pillow 13 resizes its columns first, and cuts
other overshoot than all Pillows before it, under which the models were made."""


@pytest.mark.parametrize(("size", "off"), SIZES.items())
def test_patches_are_the_librarys_up_to_rounding(
    size: tuple[int, int], off: int, tmp_path: Path
) -> None:
    write_reader(tmp_path)
    levels = torch.randint(
        off, 256 - off, (2, *size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)(
        [Image.fromarray(each.numpy()) for each in levels], return_tensors="pt"
    )
    pixels = VlmPixels.read(tmp_path, "reward.path")
    ours = pixels(levels.permute(0, 3, 1, 2) / 255)
    assert [1, *pixels.grid(*size)] == theirs["image_grid_thw"][0].tolist()
    spread = torch.tensor(pixels.std).repeat_interleave(
        pixels.frames * pixels.patch**2
    )  # back to [0, 1]
    assert ours.shape == theirs["pixel_values"].shape
    assert ((ours - theirs["pixel_values"]) * spread).abs().max() < 6e-3  # the contract is 2e-2
    assert ((ours - theirs["pixel_values"]) * spread).abs().mean() < 2e-3


def test_an_image_that_fits_is_only_normalised_and_cut(vlm_folder: Path) -> None:
    pixels = VlmPixels.read(vlm_folder, "reward.path")
    images = torch.rand(1, 3, 24, 32)
    first = (
        (images - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    )[0, :, :4, :4]
    assert torch.allclose(
        pixels(images)[0].reshape(3, 2, 4, 4), first[:, None].expand(3, 2, 4, 4), atol=1e-6
    )


def test_flat_white_keeps_its_gradient(vlm_folder: Path) -> None:
    white = torch.ones(1, 3, 50, 70, requires_grad=True)
    VlmPixels.read(vlm_folder, "reward.path")(white).sum().backward()
    assert white.grad is not None and (white.grad.sum((0, 1)) > 0).float().mean() > 0.99


def test_bounds_are_read_in_both_writings(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"min_pixels": 100, "max_pixels": 900}))
    first = VlmPixels.read(tmp_path, "reward.path")
    file.write_text(json.dumps({"size": {"shortest_edge": 100, "longest_edge": 900}}))
    assert (
        first
        == VlmPixels.read(tmp_path, "reward.path")
        == VlmPixels(min_pixels=100, max_pixels=900)
    )
    assert first.bounded(None) == first
    assert first.bounded(50) == VlmPixels(min_pixels=50, max_pixels=50)


def test_a_ribbon_is_refused(vlm_folder: Path) -> None:
    with pytest.raises(DirectAlignError, match="more oblong than 200 to 1"):
        VlmPixels.read(vlm_folder, "reward.path")(torch.rand(1, 3, 4, 1000))
