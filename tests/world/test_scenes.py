from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from directalign.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    PLAIN_STYLE_SHARES,
    SHAPES,
    STYLES,
    all_captions,
    draw_scenes,
    render,
    scenes_of,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_round_trip():
    captions = all_captions()
    assert len(set(captions)) == len(COLORS) * len(SHAPES) * len(BACKGROUNDS) == 240
    assert {"an orange circle on an olive background", "a red star on a navy background"} <= set(
        captions
    )
    scenes = scenes_of(captions, style="anime")
    assert scenes.captions() == captions
    assert set(scenes.style.tolist()) == {STYLES.index("anime")}


def test_a_foreign_caption_is_quoted():
    with pytest.raises(ValueError, match="'a red dog'"):
        scenes_of(["a red star on a navy background", "a red dog"])


def test_render_is_a_function_of_scenes_and_seed():
    scenes = draw_scenes(12, seeded(1))
    images = render(scenes, seeded(2))
    assert images.shape == (12, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, render(scenes, seeded(2)))
    assert not torch.equal(images, render(scenes, seeded(3)))


def test_each_style_is_its_own_picture_of_the_same_scene():
    scenes = draw_scenes(8, seeded(4))
    drawn = torch.stack([render(scenes.with_style(style), seeded(5)) for style in STYLES])
    for first in range(len(STYLES)):
        for second in range(first):
            assert ((drawn[first] - drawn[second]).abs().mean((1, 2, 3)) > 0.03).all()


def test_each_word_changes_the_picture():
    base = draw_scenes(1, seeded(6))
    for name, count in {"color": len(COLORS), "shape": len(SHAPES), "background": 6}.items():
        scenes = [replace(base, **{name: torch.tensor([index])}) for index in range(count)]
        images = torch.cat([render(scene, seeded(7)) for scene in scenes])
        distances = (images[:, None] - images).abs().mean((2, 3, 4)) + torch.eye(count)
        assert distances.min() > 0.005, name


def test_photos_are_muted_and_cg_is_saturated():
    scenes = draw_scenes(64, seeded(8))
    images = {style: render(scenes.with_style(style), seeded(9)) for style in ("photo", "cg")}
    chroma = {style: (x.amax(1) - x.amin(1)).mean() for style, x in images.items()}
    assert chroma["cg"] > 1.8 * chroma["photo"]


def test_style_shares_are_drawn():
    style = draw_scenes(20_000, seeded(10), PLAIN_STYLE_SHARES).style
    drawn = torch.bincount(style, minlength=len(STYLES)) / len(style)
    assert torch.allclose(drawn, torch.tensor(PLAIN_STYLE_SHARES), atol=0.02)
    uniform = torch.bincount(draw_scenes(20_000, seeded(11)).style) / 20_000
    assert torch.allclose(uniform, torch.full((4,), 0.25), atol=0.02)
