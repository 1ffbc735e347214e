"""Captions of a tiny BLIP in files beside the images: only where they are missing, once."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from directalign.data.captions import write_captions
from directalign.data.image_dataset import scan_images
from directalign.toyworld.scenes import draw_scenes, render
from directalign.types import DirectAlignError
from tiny_captioner import write_blip

KEY = "--caption"


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return write_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def folder(tmp_path):
    """Ten images: one captioned, two of one stem, one in a folder of its own, one damaged."""
    renders = render(draw_scenes(9, torch.Generator().manual_seed(0)), torch.Generator())
    names = ["0.png", "1.png", "2.png", "2.bmp", "deep/0.png", *(f"{i}.png" for i in range(5, 9))]
    for name, image in zip(names, renders, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "0.txt").write_text("mine\n")
    (tmp_path / "bad.png").write_bytes(b"no image")
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    found = folder.rglob("*.txt")
    return {str(file.relative_to(folder)): file.read_text("utf-8").strip() for file in found}


def test_missing_captions_are_written_once_and_read_back(blip, folder):
    assert write_captions(folder, str(blip), KEY) == 8
    found = texts(folder)
    assert found.pop("0.txt") == "mine"
    assert set(found) >= {"1.txt", "2.png.txt", "2.bmp.txt", "deep/0.txt"} and len(found) == 8
    assert len(set(found.values())) > 4 and all(found.values())
    scanned = scan_images(folder)
    read = dict(zip(scanned.names, scanned.captions, strict=True))
    assert (read["2.bmp"], read["0.png"]) == (found["2.bmp.txt"], "mine")
    assert scanned.skipped == ("bad.png: no caption: bad.txt is missing",)
    (folder / "bad.png").unlink()
    (folder / "1.txt").write_text("corrected")
    assert write_captions(folder, "no such model", KEY) == 0
    assert texts(folder)["1.txt"] == "corrected"


def test_a_model_that_captions_nothing_is_refused_by_name(folder, clip_folder):
    for model, message in (
        (clip_folder, "is a transformers model of type clip; give blip"),
        (folder / "none", "no such folder; give blip"),
    ):
        with pytest.raises(DirectAlignError, match=message):
            write_captions(folder, str(model), KEY)
    assert list(texts(folder)) == ["0.txt"]
