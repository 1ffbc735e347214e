"""Rewards in the evaluation of a run: phrases, held-out rewards in every record and page, which do
not influence training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import recipe, trained, with_settings

from directalign import config
from directalign.evaluation.in_training import Measurer
from directalign.evaluation.scores import check_labels, load_held_out
from directalign.rewards import load_reward
from directalign.training import run as train
from directalign.training.run_log import read
from directalign.types import DirectAlignError, Images, PerSample


class Length:
    """Scores the length of the prompt; with the name clip it has image embeddings."""

    sees, reads_prompt, differentiable = "pixels", True, True

    def __init__(self, name: str) -> None:
        self.name, self.encoded = name, 0
        self.image_embeddings = name == "clip"

    def encode(self, images: Images) -> Images:
        self.encoded += 1
        return images

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def with_rewards(
    pipelines: Mapping[str, Path], prompts: Path, rewards: Mapping[str, Any], *more: str
) -> config.RunConfig:
    """The small run with held-out rewards and control phrases."""
    run = recipe("flux", pipelines["flux"], prompts)
    phrases = config.ControlPhrases(positive=["Photo", *more], negative=["CG"])
    run = with_settings(run, "method", control_phrases=phrases)
    evaluate = {**run.evaluate.model_dump(), "rewards": dict(rewards)}
    return config.RunConfig.model_validate({**run.model_dump(), "evaluate": evaluate})


def test_a_record_has_the_mean_of_every_held_out_reward(pipelines, prompts):
    names = {"light": "brightness", "colour": "saturation"}
    rewards = {key: {"name": "pixels", "statistic": name} for key, name in names.items()}
    run = with_rewards(pipelines, prompts, rewards)
    held_out = load_held_out(run.evaluate, "cpu")
    measurer = Measurer(run, trained(run), load_reward(run.reward), None, held_out=held_out)
    found = measurer.measure(5)
    assert found["held_out_light"] == pytest.approx(measurer.images(5).mean().item(), abs=0.05)
    assert found["held_out_colour"] == pytest.approx(found["saturation"], rel=1e-4)
    assert "held_out_light_pos" not in found


def test_scores_under_phrases(pipelines, prompts):
    """Of held-out rewards only those with image embeddings are scored under the phrases, and
    without the learned tokens."""
    phrases, images = ("Real one", "learned.safetensors"), torch.rand(5, 3, 32, 32)
    run = with_rewards(pipelines, prompts, {}, *phrases)
    cheap, costly = Length("clip"), Length("vlm")
    held_out = {"cheap": cheap, "costly": costly}
    each = Measurer(run, trained(run), None, None, held_out=held_out).per_image(images)
    assert [name for name in each if "costly" in name] == ["held_out_costly"]
    assert cheap.encoded == 3, "five images, two at a time, encoded once for three scores"
    run = with_rewards(pipelines, prompts, {}, "Real one")
    each |= Measurer(run, trained(run), Length("phrases"), None).per_image(images)
    for bare, pos, neg in (
        ("held_out_cheap", "held_out_cheap_pos", "held_out_cheap_neg"),
        ("reward", "score_pos", "score_neg"),
    ):
        assert torch.equal(each[pos] - each[bare], torch.full((5,), (7 + 10) / 2))
        assert torch.equal(each[neg] - each[bare], torch.full((5,), 4.0))


def test_training_records_held_out_rewards_and_does_not_use_them(
    pipelines, prompts, clip_folder, tmp_path
):
    rewards = {"without": {}, "beside": {"second": {"name": "clip", "path": str(clip_folder)}}}
    for name, each in rewards.items():
        run = with_rewards(pipelines, prompts, each)
        train(with_settings(run, "method", embedded_guidance=2.0), tmp_path / name, resume=False)
    without, beside = tmp_path / "without", tmp_path / "beside"
    losses = [
        next(record["loss"] for record in read(folder) if record["event"] == "step")
        for folder in (without, beside)
    ]
    assert losses[0] == losses[1]
    weights = [(folder / "lora.safetensors").read_bytes() for folder in (without, beside)]
    assert weights[0] == weights[1]
    before, after = [record for record in read(beside) if record["event"] == "evaluate"]
    assert {"held_out_second", "held_out_second_pos", "held_out_second_neg"} <= before.keys()
    summary = json.loads((beside / "summary.json").read_text())
    assert summary["after"]["held_out_second"] == after["held_out_second"]
    assert "Held out: second" in (beside / "report.html").read_text()
    assert list((beside / "tensorboard").iterdir())


def test_labels_and_rewards_that_are_invalid_are_named(pipelines, prompts):
    for label in ("a b", "", "x_pos", "second_neg", "a.b"):
        with pytest.raises(DirectAlignError, match=r"evaluate\.rewards\."):
            check_labels([label])
    missing = {"second": {"name": "clip", "path": "no/such/folder"}}
    run = with_rewards(pipelines, prompts, missing)
    with pytest.raises(DirectAlignError, match=r"evaluate\.rewards\.second\.path"):
        load_held_out(run.evaluate, "cpu")
