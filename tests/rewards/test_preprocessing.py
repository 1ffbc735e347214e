"""Image preprocessing is the originals' up to their rounding to 8 bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from directalign.io.image_settings import VlmPixels
from directalign.rewards import load_reward
from directalign.rewards.common import Preprocessing
from published_layouts import images_drawn
from rewards.cases import refused
from tiny_rewards import write_reader

SIZES = [(64, 64), (40, 57), (57, 40), (32, 32), (33, 120), (20, 27), (25, 21), (200, 130)]
FILE = "preprocessor_config.json"
PROCESSORS: dict[str, Any] = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE).read_text())


def eight_bits(images: Tensor) -> list[np.ndarray]:
    """Images (h, w, 3), 0 to 255."""
    return list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("name", PROCESSORS)
def test_as_transformers(name, resample, sections, tmp_path):
    changed = settings_of(Path(sections(name).path)) | {"resample": resample}
    (tmp_path / FILE).write_text(json.dumps(changed))
    ours, processor = Preprocessing.read(tmp_path), PROCESSORS[name].from_pretrained(tmp_path)
    std = torch.tensor(ours.std)[:, None, None]
    for size in SIZES:
        images = images_drawn(2, *size, 3)
        theirs = processor(images=eight_bits(images), return_tensors="pt")["pixel_values"]
        assert ours(images).shape == (2, 3, 32, 32)
        assert ((ours(images) - theirs) * std).abs().max() < 2e-2


@pytest.mark.parametrize("name", ["linear", "improved", "v2_5", "image_reward"])
def test_as_torchvision(name, sections):
    ours = load_reward(sections(name)).preprocessing  # pyright: ignore[reportAttributeAccessIssue]
    mean, std = (torch.tensor(values)[:, None, None] for values in (ours.mean, ours.std))
    for size in [*SIZES, (49, 32), (90, 91), (231, 400)]:
        images = images_drawn(1, *size, 3)
        theirs = cut_square(eight_bits(images)[0], squashed=name == "v2_5")
        assert (ours(images)[0] * std + mean - theirs).abs().max() < 2e-2


def cut_square(levels: np.ndarray, squashed: bool, side: int = 32) -> Tensor:
    """8-bit pixels resized by Pillow: squashed, or the short side, and cut as torchvision cuts."""
    image = Image.fromarray(levels)
    short = min(image.size)
    size = [side if squashed or each == short else int(side * each / short) for each in image.size]
    left, top = (round((each - side) / 2) for each in size)
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    pixels = np.array(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def test_settings_of_newer_transformers_are_read(clip_folder, tmp_path):
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": settings_of(clip_folder)})
    )
    assert Preprocessing.read(tmp_path) == Preprocessing.read(clip_folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", None), ("crop_size", {"shortest_edge": 8}), ("resample", 1), ("image_mean", None)],
)
def test_unreadable_settings_name_the_file(clip_folder, tmp_path, key, value):
    settings = settings_of(clip_folder)
    settings.pop(key) if value is None else settings.update({key: value})
    (tmp_path / FILE).write_text(json.dumps(settings))
    with refused(r"preprocessor_config\.json"):
        Preprocessing.read(tmp_path)
    (tmp_path / FILE).write_text("{")
    with refused(r"preprocessor_config\.json: not readable as JSON"):
        Preprocessing.read(tmp_path)


# --- Qwen VL --------------------------------------------------------------------------------------

VLM_SIZES = dict.fromkeys(SIZES, 0) | {(36, 60): 60, (90, 31): 0, (8, 10): 0, (11, 50): 0}
"""Of the size of cells, to the nearest cell, too small, too large, oblong. The number keeps levels
off black and white: where an image gets lower and wider, Pillow 13 resizes its columns first and
clips other overshoot than all Pillows before it, under which the models were made."""


@pytest.mark.parametrize(("size", "off"), [*VLM_SIZES.items(), ((301, 299), 0)])
def test_patches_are_the_librarys(size, off, tmp_path):
    write_reader(tmp_path)
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(off, 256 - off, (2, 3, *size), generator=generator) / 255
    pictures = [Image.fromarray(each) for each in eight_bits(levels)]
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)(pictures, return_tensors="pt")
    pixels = VlmPixels.read(tmp_path, "reward.path")
    ours = pixels(levels)
    assert [1, *pixels.grid(*size)] == theirs["image_grid_thw"][0].tolist()
    assert ours.shape == theirs["pixel_values"].shape
    spread = torch.tensor(pixels.std).repeat_interleave(pixels.frames * pixels.patch**2)
    difference = ((ours - theirs["pixel_values"]) * spread).abs()  # in [0, 1]
    assert difference.max() < 6e-3 and difference.mean() < 2e-3  # the contract is 2e-2


def test_flat_white_has_a_gradient_and_ribbons_are_refused(tmp_path):
    write_reader(tmp_path)
    pixels, white = VlmPixels.read(tmp_path, "reward.path"), torch.ones(1, 3, 50, 70)
    pixels(white.requires_grad_()).sum().backward()
    assert white.grad is not None and (white.grad.sum((0, 1)) > 0).float().mean() > 0.99
    with refused("more oblong than 200 to 1"):
        pixels(torch.rand(1, 3, 4, 1000))


def test_bounds_are_read_in_both_spellings(tmp_path):
    for bounds in (
        {"min_pixels": 100, "max_pixels": 900},
        {"size": {"shortest_edge": 100, "longest_edge": 900}},
    ):
        (tmp_path / FILE).write_text(json.dumps(bounds))
        found = VlmPixels.read(tmp_path, "reward.path")
        assert found == VlmPixels(min_pixels=100, max_pixels=900) == found.bounded(None)
        assert found.bounded(50) == VlmPixels(min_pixels=50, max_pixels=50)
