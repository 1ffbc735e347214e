"""Scenes round-trip and are drawn in four styles; the judges read them and refuse others."""

from dataclasses import replace

import pytest
import torch

from directalign.interfaces import Judge
from directalign.toyworld.judges import Classifier, WorldJudge, load_judge, plain_caption
from directalign.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    CONTENT,
    IMAGE_SIZE,
    SHAPES,
    STYLES,
    Scenes,
    all_captions,
    draw_scenes,
    render,
    scenes_of,
)
from directalign.toyworld.worlds import WORLDS
from tools.build_toyworld.reward_card import retouch

COUNT = 160
WORLD = WORLDS["world"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(judge: WorldJudge, images: torch.Tensor, scenes: Scenes) -> dict[str, torch.Tensor]:
    return dict(judge(images, [f"CG render. {caption}" for caption in scenes.captions()]))


def untrained() -> WorldJudge:
    style, content = Classifier({"style": len(STYLES)}), Classifier(CONTENT)
    return WorldJudge(WORLD, style, content)


@pytest.fixture(scope="module")
def shipped():
    return load_judge()


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(COUNT, seeded(71))


@pytest.fixture(scope="module")
def images(scenes):
    return render(scenes, seeded(72))


def test_content_is_right_when_all_three_parts_are():
    judge = untrained()
    assert isinstance(judge, Judge)
    scenes = draw_scenes(16, seeded(1))
    found = answers(judge, torch.rand(16, 3, 64, 64, generator=seeded(2)), scenes)
    styles = [f"style_{style}" for style in STYLES]
    assert set(found) == {*WORLD.judged, "style_photo"} and {"color", *styles} < set(found)
    assert torch.equal(found["content"], found["color"] * found["shape"] * found["background"])
    assert torch.equal(found["photo_rate"], found["style_photo"])
    assert torch.equal(found["photo_and_content"], found["photo_rate"] * found["content"])
    assert torch.equal(torch.stack([found[style] for style in styles]).sum(0), torch.ones(16))
    assert all(set(answer.tolist()) <= {0.0, 1.0} for answer in found.values())


def test_control_phrases_are_removed_and_other_prompts_quoted():
    caption = "a red star on a navy background"
    assert plain_caption(caption) == plain_caption(f"Realistic photo. {caption}") == caption
    with pytest.raises(ValueError, match="a red dog"):
        untrained()(torch.rand(1, 3, 64, 64), ["Realistic photo. a red dog"])


def test_shipped_judges_read_fresh_renders_and_refuse_others(shipped, images, scenes):
    found = answers(shipped, images, scenes)
    for index, style in enumerate(STYLES):
        assert (found[f"style_{style}"] == (scenes.style == index)).float().mean() >= 0.98
    assert found["content"].mean() >= 0.98
    assert answers(shipped, images.roll(1, 0), scenes)["content"].mean() <= 0.05


def test_shipped_judges_are_not_moved_by_tint_or_muted_colour(shipped, images, scenes):
    gray, is_photo = images.mean(1, keepdim=True), scenes.style == STYLES.index("photo")
    red = retouch(images, tint=0.1)
    for changed in (gray + 0.6 * (images - gray), red):
        found = answers(shipped, changed, scenes)
        assert (found["photo_rate"] == is_photo).float().mean() >= 0.97
        assert found["content"].mean() >= 0.95


def test_a_missing_asset_says_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"judges/style\.safetensors"):
        load_judge(replace(WORLD, assets=tmp_path))


# --- scenes ---------------------------------------------------------------------------------------


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
