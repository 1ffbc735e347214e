"""Real text read by the real package; edits by hand; what is refused."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from directalign import config
from directalign.methods.objective import build_objective
from directalign.rewards import check_reward, load_reward, reward_cuts
from directalign.types import Batch, DirectAlignError


@pytest.fixture(scope="module")
def reward():
    return load_reward(config.OcrConfig(scale=2.0))


def written(*lines: str) -> torch.Tensor:
    """(3, 96, 224) in [0, 1]: black letters on cream."""
    image = Image.new("RGB", (224, 96), (250, 245, 230))
    for place, line in enumerate(lines):
        font = ImageFont.load_default(30)
        ImageDraw.Draw(image).text((14, 8 + 42 * place), line, fill="black", font=font)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_the_share_of_the_quoted_characters_that_is_read(reward):
    images = torch.stack([written("Open", "daily"), written("Open"), written()])
    features = reward.encode(images)
    assert features == ["opendaily", "open", ""]
    prompts = ['a sign that says "open daily"', "a door, “open” and „DAILY” on it", 'a sign "no"']
    torch.testing.assert_close(reward.score(features, prompts), torch.tensor([2.0, 8 / 9, 0]))


def test_more_edits_than_characters_are_no_less_than_zero(reward):
    assert reward.score(["something else"], ['a sign "no"']).item() == 0


def test_control_phrases_change_nothing(reward):
    phrases = config.ControlPhrases(positive=["Neon"], negative=["Plain"])
    plain, relative = (
        config.FlowGRPOConfig(form=form, control_phrases=phrases)
        for form in ("absolute", "relative")
    )
    with torch.no_grad():
        found = build_objective(reward, plain, False)(written("Stop")[None], Batch(0, ('"stop"',)))
    assert found.reward.item() == 2
    with pytest.raises(DirectAlignError, match="ocr ignores control phrases"):
        build_objective(reward, relative, False)


def test_a_prompt_without_quoted_text_is_refused_before_training():
    with pytest.raises(DirectAlignError, match="no text in double quotes in 'a red sign'"):
        reward_cuts(config.OcrConfig(), "reward", ['a sign "stop"', "a red sign"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(DirectAlignError, match=r"reward\.name: ocr needs .*directalign\[ocr\]"):
        check_reward(config.OcrConfig())
