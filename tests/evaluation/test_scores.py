"""Metric functions in closed form, the same for comparisons and for evaluation during training."""

from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch

from directalign import config
from directalign.evaluation.eval_prompts import CONTROL_GROUP, EvalSample
from directalign.evaluation.results import summarise_images
from directalign.evaluation.scores import (
    MetricFunction,
    MetricInput,
    compared_pixels,
    compared_reward_metrics,
    judge_metrics,
    per_image,
)
from directalign.types import Images, PerSample


class Length:
    """Scores the length of the prompt plus the mean red; features are mean colours."""

    name, sees, reads_prompt, differentiable = "clip", "pixels", True, True
    image_embeddings = True
    encoded = 0

    def encode(self, images: Images) -> torch.Tensor:
        self.encoded += 1
        return images.mean((2, 3))

    def score(self, features: torch.Tensor, prompts: Sequence[str]) -> PerSample:
        return torch.tensor([float(len(prompt)) for prompt in prompts]) + features[:, 0]


def metrics_of(
    functions: Sequence[MetricFunction], group: str | None = None
) -> dict[str, dict[str, PerSample]]:
    """Of grey base images and red tuned ones, for two prompts with two and one seeds."""
    samples = [EvalSample(i, prompt, i, group) for i, prompt in enumerate(["ab", "ab", "abcd"])]
    grey = torch.full((3, 3, 4, 4), 0.5)
    base = MetricInput(samples, grey)
    tuned = MetricInput(samples, grey * torch.tensor([1.0, 0.0, 0.0])[:, None, None], base)
    return {"base": per_image(functions, base), "tuned": per_image(functions, tuned)}


def test_reward_scores_gap_and_distances():
    phrases = config.ControlPhrases(positive=["Photo", "Real one"], negative=["CG"])
    reward = Length()
    function = compared_reward_metrics("l", reward, phrases, 2, "cpu")
    found = metrics_of([function])
    assert reward.encoded == 4, "two batches of two models, each encoded once"
    assert found["tuned"]["score_l"].tolist() == [2.5, 2.5, 4.5]
    assert found["base"]["sgp_l"].tolist() == pytest.approx([(5 + 8) / 2 - 2] * 3)
    distances = found["tuned"]["base_distance_l"].tolist()
    assert distances == pytest.approx([1 - 3**-0.5] * 3, abs=1e-6)
    assert "base_distance_l" not in found["base"]
    diversity = found["base"]["diversity_l"]
    assert diversity[:2].tolist() == pytest.approx([0, 0], abs=1e-6) and diversity[2].isnan()
    control = metrics_of([function], CONTROL_GROUP)["tuned"]
    scores = {name: values.tolist() for name, values in control.items()}
    assert scores == {"off_topic_score_l": [2.5, 2.5, 4.5]}


def test_pixel_metrics_and_distances_from_the_base():
    found = metrics_of([compared_pixels])
    for name in ("base_rmse", "base_color_shift"):
        expected = [0.5 * (2 / 3) ** 0.5] * 3
        assert found["tuned"][name].tolist() == pytest.approx(expected, abs=1e-6)
        assert name not in found["base"]
    assert found["base"]["entropy"].tolist() == [0, 0, 0]
    assert found["base"]["edge_density"].tolist() == [0, 0, 0]
    control = metrics_of([compared_pixels], CONTROL_GROUP)["tuned"]
    assert set(control) == {"off_topic_base_rmse", "off_topic_base_color_shift"}


def test_style_kept_compares_with_the_style_of_the_prompt():
    def judge(images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]:
        ones = torch.ones(len(prompts))
        styles = {f"style_{name}": 0 * ones for name in ("photo", "cg", "painting")}
        return {**styles, "style_anime": ones, "content": ones, "color": ones}

    prompts = ["Anime. a red star", "CG render. a ring", "Oil painting. a ring", "Anime. a ring"]
    samples = [EvalSample(i, prompt, i, CONTROL_GROUP) for i, prompt in enumerate(prompts)]
    inputs = MetricInput(samples, torch.rand(4, 3, 8, 8))
    found = summarise_images(per_image([partial(judge_metrics, judge, True)], inputs), prompts)
    assert found.keys() == {"off_topic_style_kept", "off_topic_content"}
    assert found["off_topic_style_kept"]["value"] == 0.5 and found["off_topic_content"]["n"] == 4
    assert per_image([partial(judge_metrics, judge, False)], inputs) == {}
    own = MetricInput([EvalSample(0, "a red star", 0)], torch.rand(1, 3, 8, 8))
    summary = summarise_images(
        per_image([partial(judge_metrics, judge, True)], own), ["a red star"]
    )
    assert summary["style_anime"] == 1.0 and summary["content"]["value"] == 1.0
    assert "color" not in summary, "part of content"
