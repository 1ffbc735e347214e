"""What a measurement says: rates with intervals, drift against its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import recipe, trained

from directalign.evaluation import image_metrics
from directalign.evaluation.eval_prompts import Pairs
from directalign.evaluation.in_training import Measurer, photographs
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.types import Images, PerSample


class Judge:
    """Photo when bright, content always right."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]:
        return {
            "photo_rate": (images.mean((1, 2, 3)) > 0.5).float(),
            "content": torch.ones(len(prompts)),
        }


class WordReward:
    """Scores the length of the prompt, which tells the phrases apart."""

    name, reads_prompt, differentiable = "words", True, True

    def encode(self, images: Images) -> Images:
        return images

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def test_keys_and_prefix(pipelines: dict[str, Path], prompts: Path):
    run = recipe("flux", pipelines["flux"], prompts)
    measurer = Measurer(run, trained(run), load_reward(run.reward), Judge())
    measured = measurer.measure(5)
    assert {
        "photo_rate",
        "content",
        "color_drift",
        "reward",
        "saturation",
        "brightness",
        "sharpness",
        "seconds",
    } <= measured.keys()
    assert measured["content"]["value"] == 1.0 and measured["content"]["n"] == 5
    assert (measurer.images(3) - measurer.images(5)[:3]).abs().max() < 1e-5
    assert measurer.measure(3)["content"]["n"] == 3


def test_drift_from_the_base_is_zero_before_training_and_measured_after(
    pipelines: dict[str, Path], prompts: Path
):
    run = recipe("flux", pipelines["flux"], prompts)
    tuned = Measurer(run, trained(run), None, None)
    expected = image_metrics.color_drift(tuned.images(5), tuned.base_images(tuned.pairs))
    assert tuned.measure(5)["color_drift"] == pytest.approx(expected, rel=1e-4) and expected > 0
    full = run.model_copy(update={"model": run.model.model_copy(update={"tune": "full"})})
    assert (
        Measurer(full, load_model(full.model, "cpu"), None, None).measure(5)["color_drift"] < 1e-6
    )


def test_scores_are_asked_under_all_three_phrasings(pipelines: dict[str, Path], prompts: Path):
    run = recipe("flux", pipelines["flux"], prompts)
    words = run.method.control_phrases.model_copy(
        update={"positive": ["Photo", "Real one"], "negative": ["CG"]}
    )
    run = run.model_copy(
        update={"method": run.method.model_copy(update={"control_phrases": words})}
    )
    each = Measurer(run, trained(run), WordReward(), None).per_image(torch.rand(5, 3, 32, 32))
    assert torch.equal(each["score_pos"] - each["reward"], torch.full((5,), (7 + 10) / 2))
    assert torch.equal(each["score_neg"] - each["reward"], torch.full((5,), 4.0))


def test_photographs_depend_on_the_pair_alone():
    pairs = Pairs(("a red star on a navy background", "a pink ring on an olive background"), (1, 2))
    both = photographs(pairs)
    assert torch.equal(photographs(pairs.first(1)), both[:1])
