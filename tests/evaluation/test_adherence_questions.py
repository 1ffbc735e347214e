"""Facts as questions to a tiny VLM; settings from the command line; refusals before loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from directalign import config
from directalign.evaluation.adherence import (
    adherence_of,
    adherence_settings,
    check_adherence,
    check_rows,
)
from directalign.evaluation.adherence.vqa import VlmJudge
from directalign.evaluation.eval_prompts import PromptRow, checked_facts, read_prompt_set
from directalign.preflight.checks import check_adherence as planned
from directalign.rewards import qwen_vl
from directalign.types import DirectAlignError
from finished_runs import finished_recipe
from tiny_clip import clip_folder
from tiny_detectors import write_detector
from tiny_vlm import vlm_folder

__all__ = ["clip_folder", "vlm_folder"]

FACTS = {
    "tag": "color_attr",
    "include": [{"class": "star", "count": 1, "color": "red"}, {"class": "dog", "count": 1}],
    "exclude": [],
}


def settings(folder: Path, **more: Any) -> config.QwenVLConfig:
    return config.QwenVLConfig(**{"path": str(folder), "dtype": "float32", **more})


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_each_fact_becomes_a_question_and_one_half_decides(vlm_folder: Path) -> None:
    reward = qwen_vl.VlmReward.from_config(settings(vlm_folder))
    judged = adherence_of(settings(vlm_folder)).judged(
        images(), [PromptRow("p", "color_attr", checked_facts(FACTS, "here"))] * 2
    )
    texts = ["a star", "a red star", "a dog"]
    for place, each in enumerate(judged):
        features = reward.encode(images()[place : place + 1])
        sure = [float(reward.score(features, [words])) for words in texts]
        assert [verdict.fact for verdict in each.verdicts] == texts
        assert [verdict.saw for verdict in each.verdicts] == [f"P(yes) {p:.3f}" for p in sure]
        assert [verdict.right for verdict in each.verdicts] == [p > 0.5 for p in sure]


def test_both_answers_come_up(vlm_folder: Path) -> None:
    """Exchanged answers turn every verdict round, so that neither side of one half is taken for
    granted."""
    rows = [PromptRow("a red star"), PromptRow("a blue ring on sandy background")]
    plain, turned = (
        adherence_of(settings(vlm_folder, **answers))(images(), rows)
        for answers in ({}, {"yes": "No", "no": "Yes"})
    )
    assert list(plain) == ["adherence"]
    assert torch.equal(plain["adherence"], 1 - turned["adherence"])


def test_an_image_is_looked_at_once_and_a_free_prompt_is_its_own_fact(vlm_folder: Path) -> None:
    judge, encoded = adherence_of(settings(vlm_folder)), []
    assert isinstance(judge.by, VlmJudge)
    judge.by.reward.model.model.visual.register_forward_pre_hook(lambda *_: encoded.append(1))
    facts, free = judge.judged(
        images(),
        [
            PromptRow("p", "color_attr", checked_facts(FACTS, "here")),
            PromptRow("a red star at night", "Colors"),
        ],
    )
    assert len(encoded) == 2
    assert (facts.tag, free.tag) == ("color_attr", None)
    assert [verdict.fact for verdict in free.verdicts] == ["a red star at night"]


def test_answers_that_one_half_does_not_divide_are_refused(
    vlm_folder: Path, tmp_path: Path
) -> None:
    for wrong in ({"answer": "log_odds"}, {"scale": 2.0}):
        for use in (check_adherence, adherence_of):
            with pytest.raises(
                DirectAlignError, match=r"evaluate\.adherence: answer: .*decided by P\(yes\)"
            ):
                use(settings(vlm_folder, **wrong))
    with pytest.raises(DirectAlignError, match=r"evaluate\.adherence\.path: .*no such folder"):
        check_adherence(settings(tmp_path / "missing"))
    check_rows(settings(vlm_folder), [PromptRow("anything")])


def test_a_geneval_file_is_judged_as_it_is_read(vlm_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "metadata.jsonl"
    file.write_text(
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], '
        '"exclude": [{"class": "clock", "count": 3}], "prompt": "two clocks"}\n'
    )
    found = adherence_of(settings(vlm_folder))(images(1), read_prompt_set(file).rows)
    assert list(found) == ["adherence", "adherence_counting"]


# --- settings from the command line ---------------------------------------------------------------


def test_a_bare_path_means_its_kind_of_model(
    vlm_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    detector = write_detector(tmp_path / "detector", "rt_detr")
    assert adherence_settings(str(vlm_folder)) == config.QwenVLConfig(path=str(vlm_folder))
    assert adherence_settings(str(detector)) == config.DetectorConfig(path=str(detector))
    with pytest.raises(
        DirectAlignError,
        match=r"holds a model of type clip; known are the detectors mask2former, .* VLMs qwen2_vl",
    ):
        adherence_settings(str(clip_folder))
    with pytest.raises(DirectAlignError, match="no such folder"):
        adherence_settings(str(tmp_path / "missing"))


def test_a_recipe_says_everything(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        RECIPE + "evaluate:\n  adherence: {name: detector, path: there, threshold: 0.2, "
        "colors: {name: clip, path: here}}\n"
    )
    found = adherence_settings(str(file))
    assert found == config.DetectorConfig(
        path="there", threshold=0.2, colors=config.ClipConfig(path="here")
    )
    file.write_text(RECIPE)
    with pytest.raises(DirectAlignError, match=r"recipe\.yaml: has no evaluate\.adherence; add it"):
        adherence_settings(str(file))


RECIPE = """
name: any
model: {architecture: flux, path: somewhere}
reward: {name: clip, path: somewhere}
method: {name: refl}
data: {prompts: world}
train: {num_steps: 1}
"""


def test_planning_refuses_a_missing_detector_before_loading(tmp_path: Path) -> None:
    run = finished_recipe("flux", "world:base-flux")
    assert planned(run) == []
    with_detector = run.model_copy(
        update={
            "evaluate": run.evaluate.model_copy(
                update={"adherence": config.DetectorConfig(path=str(tmp_path / "missing"))}
            )
        }
    )
    with pytest.raises(
        DirectAlignError, match=r"evaluate\.adherence\.path: .*missing: no such folder"
    ):
        planned(with_detector)
