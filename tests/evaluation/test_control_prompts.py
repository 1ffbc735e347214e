"""Control prompts: the toy world's, their seeds, and the evaluation of a run on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import recipe, trained

from directalign import config
from directalign.data.prompts import held_out_captions, train_captions
from directalign.evaluation import image_metrics
from directalign.evaluation.eval_prompts import (
    FIRST_SEED,
    control_pairs,
    named_styles,
    read_control_prompts,
)
from directalign.evaluation.in_training import Measurer
from directalign.models import load_model
from directalign.preflight.checks import check_control_prompts
from directalign.rewards import load_reward
from directalign.types import DirectAlignError

PHOTO = ["Realistic photo", "Natural lighting"]


@pytest.fixture
def others(tmp_path: Path) -> Path:
    file = tmp_path / "others.txt"
    file.write_text("a map of a city\na bowl of soup\n")
    return file


def with_controls(run: config.RunConfig, source: Path | str) -> config.RunConfig:
    evaluate = run.evaluate.model_copy(update={"control_prompts": str(source)})
    return run.model_copy(update={"evaluate": evaluate})


def test_the_world_has_held_out_captions_in_styles_that_no_positive_phrase_names() -> None:
    def styles(positive: list[str]) -> set[str]:
        prompts = read_control_prompts("world", config.ControlPhrases(positive=positive))
        return {prompt.split(". ")[0] for prompt in prompts}

    prompts = read_control_prompts("world", config.ControlPhrases(positive=PHOTO))
    assert len(prompts) == 3 * 35 and set(prompts).isdisjoint(train_captions())
    assert {prompt.split(". ")[1] for prompt in prompts} == set(held_out_captions())
    assert styles(PHOTO) == {"CG render", "Oil painting", "Anime"}
    assert styles(["Anime"]) == {"Realistic photo", "CG render", "Oil painting"}
    with pytest.raises(DirectAlignError, match=r"control_prompts: world: .*names every style"):
        styles(["Realistic photo", "CG render", "Brush strokes", "Flat cartoon"])
    assert named_styles(("Oil painting. a red star", "CG render. a ring")) == ("painting", "cg")


def test_seeds_are_not_used_elsewhere() -> None:
    pairs = control_pairs(["a", "b"], 5)
    assert len(pairs) == 5 and set(pairs.seeds).isdisjoint(range(FIRST_SEED, 2 * FIRST_SEED + 100))
    assert pairs.first(2) == control_pairs(["a", "b"], 2)


def test_before_training_nothing_has_leaked(
    pipelines: dict[str, Path], prompts: Path, others: Path
) -> None:
    run = with_controls(recipe("flux", pipelines["flux"], prompts), others)
    reward = load_reward(run.reward)
    measurer = Measurer(run, load_model(run.model, "cpu"), reward, None)
    assert measurer.control is not None
    assert len(measurer.control.pairs) == run.evaluate.num_samples_during == 3
    before, after = measurer.measure(3), Measurer(run, trained(run), reward, None).measure(3)
    assert before["off_topic_color_drift"] < 1e-6 and "off_topic_style_kept" not in before
    assert after["off_topic_color_drift"] > 0
    assert after["off_topic_reward"] != before["off_topic_reward"]


def test_a_fully_trained_model_uses_base_images_from_before_training(
    pipelines: dict[str, Path], prompts: Path, others: Path
) -> None:
    run = with_controls(recipe("flux", pipelines["flux"], prompts), others)
    run = run.model_copy(update={"model": run.model.model_copy(update={"tune": "full"})})
    model = load_model(run.model, "cpu")
    measurer = Measurer(run, model, load_reward(run.reward), None)
    measurer.prepare()
    assert measurer.control is not None
    base = measurer.control.images
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.mul_(1.2)
    found = measurer.measure(3)["off_topic_color_drift"]
    assert measurer.control.images is base
    images = measurer._generate(measurer.control.pairs)
    assert found == pytest.approx(image_metrics.color_drift(images, base)) and found != 0


def test_prompts_that_are_trained_on_are_refused_before_the_run(
    pipelines: dict[str, Path], prompts: Path, others: Path, tmp_path: Path
) -> None:
    run = recipe("flux", pipelines["flux"], prompts)
    assert check_control_prompts(run) == []
    assert "2 from" in check_control_prompts(with_controls(run, others))[0][1]
    far = check_control_prompts(with_controls(run, "hf:owner/name"))
    assert far[0][1] == "hf:owner/name, read when the run starts"
    others.write_text("a red star\nsoup\n")
    with pytest.raises(
        DirectAlignError, match=r"control_prompts: .*1 of its prompts .*'a red star'"
    ):
        check_control_prompts(with_controls(run, others))
    with pytest.raises(DirectAlignError, match="no such"):
        check_control_prompts(with_controls(run, tmp_path / "none.txt"))
