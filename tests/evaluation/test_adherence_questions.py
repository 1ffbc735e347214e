"""Facts as questions to a tiny VLM; settings from the command line; refusals before loading."""

from pathlib import Path
from typing import Any

import pytest
import torch

from directalign import config
from directalign.evaluation.adherence import (
    VlmJudge,
    adherence_of,
    adherence_settings,
    check_adherence,
    check_rows,
)
from directalign.evaluation.eval_prompts import PromptRow, checked_facts
from directalign.preflight.checks import check_adherence as planned
from directalign.types import DirectAlignError
from finished_runs import finished_recipe
from tiny_detectors import write_detector

OBJECTS = [{"class": "star", "count": 1, "color": "red"}, {"class": "dog", "count": 1}]
FACTS = checked_facts({"tag": "color_attr", "include": OBJECTS, "exclude": []}, "here")
ROW, FREE = PromptRow("p", "color_attr", FACTS), PromptRow("a red star at night", "Colors")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def settings(folder: Path, **more: Any) -> config.QwenVLConfig:
    return config.QwenVLConfig(**{"path": str(folder), "dtype": "float32", **more})


def test_each_fact_is_a_question_and_one_half_decides(vlm_folder):
    """An image is encoded once for all of its questions; a free prompt is its own fact."""
    judge, encoded = adherence_of(settings(vlm_folder)), []
    assert isinstance(judge.by, VlmJudge)
    reward = judge.by.reward
    hook = reward.model.model.visual.register_forward_pre_hook(lambda *_: encoded.append(1))
    judged = judge.judged(IMAGES, [ROW, FREE])
    hook.remove()
    assert len(encoded) == 2 and [each.tag for each in judged] == ["color_attr", None]
    texts = ["a star", "a red star", "a dog"], ["a red star at night"]
    for image, each, own in zip(IMAGES, judged, texts, strict=True):
        features = reward.encode(image[None])
        ps = [float(reward.score(features, [text])) for text in own]
        assert [verdict.fact for verdict in each.verdicts] == own
        assert [verdict.saw for verdict in each.verdicts] == [f"P(yes) {p:.3f}" for p in ps]
        assert [verdict.right for verdict in each.verdicts] == [p > 0.5 for p in ps]
    assert list(judge(IMAGES[:1], [ROW])) == ["adherence", "adherence_color_attr"]


def test_exchanged_answers_reverse_every_verdict(vlm_folder):
    rows = [PromptRow("a red star"), PromptRow("a blue ring on sandy background")]
    answers = [{}, {"yes": "No", "no": "Yes"}]
    plain, turned = (adherence_of(settings(vlm_folder, **each))(IMAGES, rows) for each in answers)
    assert list(plain) == ["adherence"]
    assert torch.equal(plain["adherence"], 1 - turned["adherence"])


def test_answers_that_are_no_probability_are_refused(vlm_folder, tmp_path):
    words = r"evaluate\.adherence: answer: .*decided by P\(yes\)"
    for wrong in ({"answer": "log_odds"}, {"scale": 2.0}):
        for use in (check_adherence, adherence_of):
            with pytest.raises(DirectAlignError, match=words):
                use(settings(vlm_folder, **wrong))
    with pytest.raises(DirectAlignError, match=r"evaluate\.adherence\.path: .*no such folder"):
        check_adherence(settings(tmp_path / "missing"))
    check_rows(settings(vlm_folder), [PromptRow("anything")])


def test_a_path_stands_for_its_kind_of_model(vlm_folder, clip_folder, tmp_path):
    detector = write_detector(tmp_path / "detector", "rt_detr")
    assert adherence_settings(str(vlm_folder)) == config.QwenVLConfig(path=str(vlm_folder))
    assert adherence_settings(str(detector)) == config.DetectorConfig(path=str(detector))
    words = r"holds a model of type clip; known are the detectors mask2former, .* VLMs qwen2_vl"
    for folder, problem in ((clip_folder, words), (tmp_path / "missing", "no such folder")):
        with pytest.raises(DirectAlignError, match=problem):
            adherence_settings(str(folder))


RECIPE = """
name: any
model: {architecture: flux, path: somewhere}
reward: {name: clip, path: somewhere}
method: {name: refl}
data: {prompts: world}
train: {num_steps: 1}
"""


def test_a_recipe_brings_its_own_section(tmp_path):
    file = tmp_path / "recipe.yaml"
    section = "{name: detector, path: there, threshold: 0.2, colors: {name: clip, path: here}}"
    file.write_text(f"{RECIPE}evaluate:\n  adherence: {section}\n")
    colors = config.ClipConfig(path="here")
    expected = config.DetectorConfig(path="there", threshold=0.2, colors=colors)
    assert adherence_settings(str(file)) == expected
    file.write_text(RECIPE)
    with pytest.raises(DirectAlignError, match=r"recipe\.yaml: has no evaluate\.adherence; add it"):
        adherence_settings(str(file))


def test_check_refuses_a_missing_detector(tmp_path):
    run = finished_recipe("flux", "world:base-flux")
    assert planned(run) == []
    missing = config.DetectorConfig(path=str(tmp_path / "missing"))
    evaluate = run.evaluate.model_copy(update={"adherence": missing})
    words = r"evaluate\.adherence\.path: .*missing: no such folder"
    with pytest.raises(DirectAlignError, match=words):
        planned(run.model_copy(update={"evaluate": evaluate}))
