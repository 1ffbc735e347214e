"""What a measurement says: rates with intervals, drift against its reference, and a comparison on equal pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import recipe, trained, write_run_folder

from directalign.evaluate import drift
from directalign.evaluate.compare import compared, evaluate_run
from directalign.evaluate.measure import Measurer, photographs
from directalign.evaluate.pairs import Pairs
from directalign.families.loading import load_family
from directalign.rewards import load_reward
from directalign.types import Images, PerSample


class Judge:
    """Photo when bright, content always right."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]:
        return {"photo_rate": (images.mean((1, 2, 3)) > 0.5).float(), "content": torch.ones(len(prompts))}


class WordReward:
    """Scores the length of the prompt, so that it is seen which words were asked."""

    name, reads_prompt, differentiable = "words", True, True

    def encode(self, images: Images) -> Images:
        return images

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def test_keys_and_prefix(pipelines: dict[str, Path], prompts: Path):
    run = recipe("flux", pipelines["flux"], prompts)
    measurer = Measurer(run, trained(run), load_reward(run.reward), Judge())
    measured = measurer.measure(5)
    assert {"photo_rate", "content", "color_drift", "reward", "saturation", "brightness", "sharpness", "seconds"} <= measured.keys()
    assert measured["content"]["value"] == 1.0 and measured["content"]["n"] == 5
    assert (measurer.images(3) - measurer.images(5)[:3]).abs().max() < 1e-5
    assert measurer.measure(3)["content"]["n"] == 3


def test_drift_from_the_base_is_zero_before_training_and_measured_after(pipelines: dict[str, Path], prompts: Path):
    run = recipe("flux", pipelines["flux"], prompts)
    tuned = Measurer(run, trained(run), None, None)
    expected = drift.color_drift(tuned.images(5), tuned.base_images(tuned.pairs))
    assert tuned.measure(5)["color_drift"] == pytest.approx(expected, rel=1e-4) and expected > 0
    full = run.model_copy(update={"model": run.model.model_copy(update={"tune": "full"})})
    assert Measurer(full, load_family(full.model, "cpu"), None, None).measure(5)["color_drift"] < 1e-6


def test_scores_are_asked_under_all_three_phrasings(pipelines: dict[str, Path], prompts: Path):
    run = recipe("flux", pipelines["flux"], prompts)
    words = run.method.words.model_copy(update={"positive": ["Photo", "Real one"], "negative": ["CG"]})
    run = run.model_copy(update={"method": run.method.model_copy(update={"words": words})})
    each = Measurer(run, trained(run), WordReward(), None).per_image(torch.rand(5, 3, 32, 32))
    assert torch.equal(each["score_pos"] - each["reward"], torch.full((5,), (7 + 10) / 2))
    assert torch.equal(each["score_neg"] - each["reward"], torch.full((5,), 4.0))


def test_photographs_depend_on_the_pair_alone():
    pairs = Pairs(("a red star on a navy background", "a pink ring on an olive background"), (1, 2))
    both = photographs(pairs)
    assert torch.equal(photographs(pairs.first(1)), both[:1])


def test_compared_pairs_sides_up():
    sides = {"photo_rate": torch.tensor([0.0, 0.0, 1.0, 1.0]), "reward": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    other = {"photo_rate": torch.ones(4), "reward": sides["reward"] + 0.5}
    found = compared(sides, other)
    assert found["difference"]["photo_rate"]["value"] == 0.5
    assert found["difference"]["reward"]["low"] == pytest.approx(0.5) and found["wins"]["reward"]["value"] == 1.0
    assert found["wins"]["photo_rate"]["value"] == 0.75


def test_evaluate_run_writes_a_line_per_pair(pipelines: dict[str, Path], prompts: Path, tmp_path: Path):
    folder = write_run_folder(tmp_path / "run", recipe("flux", pipelines["flux"], prompts))
    out = evaluate_run(folder, num_pairs=4, out=tmp_path / "out")
    rows = [json.loads(line) for line in (out / "evaluation.jsonl").read_text().splitlines()]
    summary = json.loads((out / "evaluation.json").read_text())
    assert len(rows) == 4 and rows[0]["base"].keys() == rows[0]["tuned"].keys()
    gained = sum(row["tuned"]["reward"] - row["base"]["reward"] for row in rows) / 4
    assert summary["difference"]["reward"]["value"] == pytest.approx(gained, abs=1e-6)
    assert summary["base"]["color_drift"] < 1e-6 < summary["tuned"]["color_drift"]
