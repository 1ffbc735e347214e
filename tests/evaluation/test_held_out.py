"""Held-out rewards appear in every record and page, and do not influence training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import recipe, trained

from directalign import config
from directalign.evaluation.in_training import Measurer
from directalign.evaluation.scores import check_labels, load_held_out
from directalign.rewards import load_reward
from directalign.training import run as train
from directalign.training.run_log import read
from directalign.types import DirectAlignError, Images, PerSample
from tiny_clip import clip_folder

__all__ = ["clip_folder"]
DARK = {"name": "pixels", "statistic": "brightness"}


class Length:
    """Scores the length of the prompt; with the name clip it has image embeddings."""

    reads_prompt, differentiable = True, True

    def __init__(self, name: str) -> None:
        self.name, self.encoded = name, 0
        self.image_embeddings = name == "clip"

    def encode(self, images: Images) -> Images:
        self.encoded += 1
        return images

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def watched(
    pipelines: Mapping[str, Path], prompts: Path, rewards: Mapping[str, Any]
) -> config.RunConfig:
    """The small run with held-out rewards and control words."""
    run = recipe("flux", pipelines["flux"], prompts)
    words = config.ControlPhrases(
        positive=["Photo", "Real one", "learned.safetensors"], negative=["CG"]
    )
    given = run.model_dump() | {
        "method": {**run.method.model_dump(), "control_phrases": words.model_dump()}
    }
    return config.RunConfig.model_validate(
        {**given, "evaluate": {**given["evaluate"], "rewards": dict(rewards)}}
    )


def test_a_measurement_holds_the_mean_of_every_held_out_reward(
    pipelines: dict[str, Path], prompts: Path
) -> None:
    run = watched(
        pipelines, prompts, {"light": DARK, "colour": {"name": "pixels", "statistic": "saturation"}}
    )
    measurer = Measurer(
        run,
        trained(run),
        load_reward(run.reward),
        None,
        held_out=load_held_out(run.evaluate, "cpu"),
    )
    found = measurer.measure(5)
    assert found["held_out_light"] == pytest.approx(
        measurer.images(5).mean((1, 2, 3)).mean().item(), abs=0.05
    )
    assert found["held_out_colour"] == pytest.approx(found["saturation"], rel=1e-4)
    assert "held_out_light_pos" not in found


def test_only_kinds_that_look_once_are_asked_under_words_and_learned_tokens_are_left_out(
    pipelines: dict[str, Path], prompts: Path
) -> None:
    run = watched(pipelines, prompts, {})
    cheap, dear = Length("clip"), Length("vlm")
    each = Measurer(
        run, trained(run), None, None, held_out={"cheap": cheap, "dear": dear}
    ).per_image(torch.rand(5, 3, 32, 32))
    assert torch.equal(
        each["held_out_cheap_pos"] - each["held_out_cheap"], torch.full((5,), (7 + 10) / 2)
    )
    assert torch.equal(each["held_out_cheap_neg"] - each["held_out_cheap"], torch.full((5,), 4.0))
    assert [name for name in each if "dear" in name] == ["held_out_dear"]
    assert cheap.encoded == 3, "five images, two at a time, seen once for three questions"


def test_training_records_them_and_does_not_heed_them(
    pipelines: dict[str, Path], prompts: Path, clip_folder: Path, tmp_path: Path
) -> None:
    without, beside = (
        watched(pipelines, prompts, {}),
        watched(pipelines, prompts, {"second": {"name": "clip", "path": str(clip_folder)}}),
    )
    for name, run in (("without", without), ("beside", beside)):
        words = run.method.control_phrases.model_copy(update={"positive": ["Photo"]})
        method = run.method.model_copy(update={"control_phrases": words, "embedded_guidance": 2.0})
        train(run.model_copy(update={"method": method}), tmp_path / name, resume=False)
    steps = [
        [record for record in read(tmp_path / name) if record["event"] == "step"]
        for name in ("without", "beside")
    ]
    assert steps[0][0]["loss"] == steps[1][0]["loss"]
    assert (tmp_path / "without" / "lora.safetensors").read_bytes() == (
        tmp_path / "beside" / "lora.safetensors"
    ).read_bytes()
    measured = [record for record in read(tmp_path / "beside") if record["event"] == "evaluate"]
    assert (
        len(measured) == 2
        and {"held_out_second", "held_out_second_pos", "held_out_second_neg"} <= measured[0].keys()
    )
    summary = json.loads((tmp_path / "beside" / "summary.json").read_text())
    assert summary["after"]["held_out_second"] == measured[1]["held_out_second"]
    assert "Held out: second" in (tmp_path / "beside" / "report.html").read_text()
    assert list((tmp_path / "beside" / "tensorboard").iterdir())


@pytest.mark.parametrize("label", ["a b", "", "x_pos", "second_neg", "a.b"])
def test_a_label_that_makes_no_name_is_refused(label: str) -> None:
    with pytest.raises(DirectAlignError, match=r"evaluate\.rewards\."):
        check_labels([label])


def test_an_error_names_the_held_out_reward(pipelines: dict[str, Path], prompts: Path) -> None:
    run = watched(pipelines, prompts, {"second": {"name": "clip", "path": "no/such/folder"}})
    with pytest.raises(DirectAlignError, match=r"evaluate\.rewards\.second\.path"):
        load_held_out(run.evaluate, "cpu")
