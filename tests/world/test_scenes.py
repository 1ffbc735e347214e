import pytest
import torch

from directalign.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
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
