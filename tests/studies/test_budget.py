"""Equal budgets: the price of an update is counted on the real network, and buys as many updates as it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from directalign.config.load import load_run
from directalign.studies.running import budget
from directalign.studies.running.budget import Budget, price, within
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Arm

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ("data.batch_size=2", "rollout.num_sampling_steps=3")
ARM = Arm("direct_align", "Direct-Align", "world_direct_align", SMALL)
SPEND = Budget(calls=100, measurements=3, num_pairs=8, diversity_prompts=1, probed=2)


def test_an_update_of_one_branch_costs_its_rollout_and_three_for_the_trained_call(tmp_path: Path) -> None:
    kept = tmp_path / "prices.json"
    assert price(settings_of(ARM, 0, RECIPES), 2, kept) == 2 * (3 + 1 + 2)
    assert list(json.loads(kept.read_text()).values()) == [12.0]


def test_a_price_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(budget, "_measured_price", lambda settings, probed: asked.append(settings.train.num_steps) or 7.0)
    settings = settings_of(ARM, 0, RECIPES)
    longer = settings.model_copy(update={"train": settings.train.model_copy(update={"num_steps": 99})})
    assert [price(each, 2, tmp_path / "prices.json") for each in (settings, longer, settings, longer)] == [7.0] * 4
    assert asked == [settings.train.num_steps, 99]


def test_the_budget_decides_how_long_a_run_is_and_how_often_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_measured_price", lambda settings, probed: 12.0)
    arm = within(SPEND, ARM, tmp_path, RECIPES)
    run = load_run(RECIPES / "world_direct_align.yaml", arm.overrides)
    assert (arm.name, run.data.batch_size, run.train.num_steps) == ("direct_align", 2, 9)  # 100 / 12, rounded up
    assert (run.evaluate.every, run.evaluate.num_pairs, run.evaluate.pairs_during, run.evaluate.diversity_prompts) == (3, 8, 8, 1)


def test_a_longer_budget_is_measured_at_the_same_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_measured_price", lambda settings, probed: 10.0)
    every = [load_run(RECIPES / "world_direct_align.yaml", within(each, ARM, tmp_path, RECIPES).overrides) for each in (SPEND, SPEND.times(3))]
    assert [(run.train.num_steps, run.evaluate.every) for run in every] == [(10, 4), (30, 4)]
