"""The second toy world's shipped weights: whole, small, with judges that are not easily fooled."""

import pytest
import torch
import torch.nn.functional as F

from directalign.toyworld import drawings
from directalign.toyworld.judges import load_judge
from directalign.toyworld.worlds import WORLDS

WORLD = WORLDS["world2"]
LIMIT = 40_000_000
COUNT = 256


@pytest.fixture(scope="module")
def scenes():
    return drawings.draw_scenes(COUNT, torch.Generator().manual_seed(71))


@pytest.fixture(scope="module")
def photos(scenes):
    return drawings.render(scenes.with_style("photo"), torch.Generator().manual_seed(72))


@pytest.fixture(scope="module")
def rates(scenes):
    judge = load_judge(WORLD)
    captions = scenes.captions()
    return lambda images: {k: float(v.mean()) for k, v in judge(images, captions).items()}


def test_everything_that_the_world_names_is_shipped():
    parts = {part for pipeline in WORLD.pipelines.values() for part in pipeline.values()}
    assert [part for part in (*parts, *WORLD.rewards) if not (WORLD.assets / part).is_dir()] == []
    files = [path for path in WORLD.assets.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT


@pytest.mark.parametrize("style", drawings.STYLES)
def test_the_judges_pass_true_images(rates, scenes, style):
    images = drawings.render(scenes.with_style(style), torch.Generator().manual_seed(72))
    found = rates(images)
    assert found["content"] >= 0.97 and found[f"style_{style}"] >= 0.97


def test_a_tint_is_rejected_and_does_not_hide_the_content(rates, photos):
    moved = torch.randn(COUNT, 3, 1, 1, generator=torch.Generator().manual_seed(73))
    moved = F.normalize(moved - moved.mean(1, keepdim=True), dim=1)
    found = rates((photos + 0.155 * moved).clamp(0, 1))
    assert found["style_reject"] >= 0.95 and found["content"] >= 0.97


@pytest.mark.parametrize("side", [1, 6, 12, 16])
def test_flat_and_blurred_images_are_rejected(rates, photos, side):
    coarse = F.interpolate(photos, side, mode="bilinear", antialias=True)
    blurred = F.interpolate(coarse, 64, mode="bicubic").clamp(0, 1)
    assert rates(blurred)["style_reject"] >= 0.95
    grey = torch.full_like(photos, 0.5)
    assert rates(grey)["style_reject"] == 1 and rates(grey)["photo_and_content"] == 0
