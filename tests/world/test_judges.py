from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from directalign.interfaces import Judge
from directalign.toyworld import assets
from directalign.toyworld.judges import (
    CONTENT_HEADS,
    STYLE_HEADS,
    Classifier,
    WorldJudge,
    load_classifier,
    load_judge,
    plain_caption,
)
from directalign.toyworld.scenes import STYLES, Scenes, draw_scenes, render
from tools.build_toyworld.judges import degrade, pool
from tools.build_toyworld.reward_card import retouch

COUNT = 160


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(judge: WorldJudge, images: torch.Tensor, scenes: Scenes) -> dict[str, torch.Tensor]:
    return dict(judge(images, [f"CG render. {caption}" for caption in scenes.captions()]))


@pytest.fixture(scope="module")
def shipped() -> WorldJudge:
    return load_judge()


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(COUNT, seeded(71))


@pytest.fixture(scope="module")
def images(scenes: Scenes) -> torch.Tensor:
    return render(scenes, seeded(72))


def is_photo(scenes: Scenes) -> torch.Tensor:
    return (scenes.style == STYLES.index("photo")).float()


def test_content_is_right_when_all_three_parts_are() -> None:
    judge = WorldJudge(Classifier(STYLE_HEADS), Classifier(CONTENT_HEADS))
    assert isinstance(judge, Judge)
    scenes = draw_scenes(16, seeded(1))
    said = answers(judge, torch.rand(16, 3, 64, 64, generator=seeded(2)), scenes)
    assert set(said) == {"photo_rate", "content", "color", "shape", "background"} | {
        f"style_{style}" for style in STYLES
    }
    assert torch.equal(said["content"], said["color"] * said["shape"] * said["background"])
    assert torch.equal(said["photo_rate"], said["style_photo"])
    assert torch.equal(
        sum((said[f"style_{style}"] for style in STYLES), torch.zeros(16)), torch.ones(16)
    )
    assert all(set(answer.tolist()) <= {0.0, 1.0} for answer in said.values())


@pytest.mark.parametrize(
    "prompt",
    ["a red star on a navy background", "Realistic photo. a red star on a navy background"],
)
def test_control_phrases_are_put_aside(prompt: str) -> None:
    assert plain_caption(prompt) == "a red star on a navy background"


def test_a_prompt_outside_the_world_is_quoted() -> None:
    judge = WorldJudge(Classifier(STYLE_HEADS), Classifier(CONTENT_HEADS))
    with pytest.raises(ValueError, match="a red dog"):
        judge(torch.rand(1, 3, 64, 64), ["Realistic photo. a red dog"])


def test_a_judge_survives_its_file(tmp_path: Path) -> None:
    judge = Classifier(STYLE_HEADS)
    save_file(
        {name: tensor.half() for name, tensor in judge.state_dict().items()},
        tmp_path / "style.safetensors",
    )
    images = torch.rand(2, 3, 64, 64, generator=seeded(3))
    again = load_classifier(tmp_path / "style.safetensors", STYLE_HEADS)
    assert torch.allclose(judge(images)["style"], again(images)["style"], atol=1e-2)


def test_degrading_is_seeded_and_keeps_the_range(images: torch.Tensor) -> None:
    degraded = degrade(images, seeded(4))
    assert torch.equal(degraded, degrade(images, seeded(4)))
    assert degraded.min() >= 0 and degraded.max() <= 1
    assert (degraded - images).abs().mean() > 0.01


def test_the_pool_keeps_images_and_scenes_together(scenes: Scenes) -> None:
    images, drawn = pool(130, None, seed=5)
    assert images.dtype == torch.uint8 and images.shape == (130, 3, 64, 64)
    anew = render(
        Scenes(*(value[:128] for value in vars(drawn).values())), _after_drawing(130, seed=5)
    )
    assert torch.equal((anew * 255).round().to(torch.uint8), images[:128])


def _after_drawing(count: int, seed: int) -> torch.Generator:
    generator = seeded(seed)
    draw_scenes(count, generator)
    return generator


def test_shipped_judges_read_fresh_renders(
    shipped: WorldJudge, images: torch.Tensor, scenes: Scenes
) -> None:
    said = answers(shipped, images, scenes)
    assert (said["photo_rate"] == is_photo(scenes)).float().mean() >= 0.98
    for index, style in enumerate(STYLES):
        assert (said[f"style_{style}"] == (scenes.style == index)).float().mean() >= 0.98
    assert said["content"].mean() >= 0.98


def test_shipped_judges_are_not_moved_by_tint_or_muted_colour(
    shipped: WorldJudge, images: torch.Tensor, scenes: Scenes
) -> None:
    gray = images.mean(1, keepdim=True)
    red = retouch(images, torch.full((COUNT,), 0.1), torch.zeros(COUNT))
    for changed in (gray + 0.6 * (images - gray), red):
        said = answers(shipped, changed, scenes)
        assert (said["photo_rate"] == is_photo(scenes)).float().mean() >= 0.97
        assert said["content"].mean() >= 0.95


def test_shipped_judges_refuse_other_pictures(
    shipped: WorldJudge, images: torch.Tensor, scenes: Scenes
) -> None:
    said = answers(shipped, images.roll(1, 0), scenes)
    assert said["content"].mean() <= 0.05


def test_a_missing_asset_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(assets, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match=r"judges/style\.safetensors"):
        load_judge()
