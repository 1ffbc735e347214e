"""The evaluation of a run: rates with intervals, drift against its reference, diversity, control
prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny_runs import recipe, trained, with_settings

from directalign.config import RunConfig
from directalign.evaluation import image_metrics
from directalign.evaluation.in_training import Measurer
from directalign.models import load_model
from directalign.preflight.checks import check_control_prompts
from directalign.rewards import load_reward
from directalign.types import DirectAlignError, Images, PerSample


class Judge:
    """Photo when bright, content always right, a style of its own, a part of content."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]:
        ones = torch.ones(len(prompts))
        photo = (images.mean((1, 2, 3)) > 0.5).float()
        drawing = torch.arange(len(images)).float()
        return {"photo_rate": photo, "content": ones, "style_drawing": drawing, "color": ones}


@pytest.fixture
def run(pipelines, prompts):
    return recipe("flux", pipelines["flux"], prompts)


@pytest.fixture
def others(tmp_path):
    file = tmp_path / "others.txt"
    file.write_text("a map of a city\na bowl of soup\n")
    return file


def full(run: RunConfig) -> RunConfig:
    return with_settings(run, "model", tune="full")


def test_a_record_has_rates_with_intervals_and_means(run):
    measurer = Measurer(run, trained(run), load_reward(run.reward), Judge())
    found = measurer.measure(5)
    names = {"photo_rate", "content", "style_drawing", "color_drift", "reward", "seconds"}
    assert names | image_metrics.STATISTICS.keys() <= found.keys()
    assert not {"diversity", "color"} & found.keys()
    assert (found["content"]["value"], found["content"]["n"]) == (1.0, 5)
    assert found["style_drawing"] == 2.0  # the mean of 0 to 4
    assert (measurer.images(3) - measurer.images(5)[:3]).abs().max() < 1e-5
    assert measurer.measure(3)["content"]["n"] == 3


def test_drift_from_the_base_is_zero_before_training_and_measured_after(run):
    tuned = Measurer(run, trained(run), None, None)
    expected = image_metrics.color_drift(tuned.images(5), tuned.base_images(tuned.pairs))
    assert tuned.measure(5)["color_drift"] == pytest.approx(expected, rel=1e-4) and expected > 0
    untrained = Measurer(full(run), load_model(full(run).model, "cpu"), None, None)
    assert untrained.measure(5)["color_drift"] < 1e-6


def test_before_training_nothing_has_leaked(run, others):
    run = with_settings(run, "evaluate", control_prompts=str(others))
    reward = load_reward(run.reward)
    measurer = Measurer(run, load_model(run.model, "cpu"), reward, None)
    assert measurer.control is not None
    assert len(measurer.control.pairs) == run.evaluate.num_samples_during == 3
    before, after = measurer.measure(3), Measurer(run, trained(run), reward, None).measure(3)
    assert before["off_topic_color_drift"] < 1e-6 and "off_topic_style_kept" not in before
    assert after["off_topic_color_drift"] > 0
    assert after["off_topic_reward"] != before["off_topic_reward"]


def test_a_fully_trained_model_uses_base_images_from_before_training(run, others):
    run = full(with_settings(run, "evaluate", control_prompts=str(others)))
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


def test_control_prompts_that_are_trained_on_are_refused_before_the_run(run, others, tmp_path):
    def check(source: Any) -> list[Any]:
        return check_control_prompts(with_settings(run, "evaluate", control_prompts=str(source)))

    assert check_control_prompts(run) == []
    assert "2 from" in check(others)[0][1]
    assert check("hf:owner/name")[0][1] == "hf:owner/name, read when the run starts"
    others.write_text("a red star\nsoup\n")
    words = r"control_prompts: .*1 of its prompts .*'a red star'"
    for source, problem in ((others, words), (tmp_path / "none.txt", "no such")):
        with pytest.raises(DirectAlignError, match=problem):
            check(source)
