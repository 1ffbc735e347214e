"""Runs, pieces, budgets: made once, resumed when interrupted, refused under other settings."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from directalign.config import RunConfig
from directalign.config.load import dump_run, load_run
from directalign.types import DirectAlignError
from experiments import runner
from experiments.runner import Arm, Budget, claim, piece, price, run_arm, settings_of

FACTS = {"commit": "0123abc", "machine": {"cores": 2}, "versions": {"torch": "2.13"}}
RECIPE = {
    "name": "test",
    "model": {"architecture": "flux", "path": "world:flux"},
    "reward": {"name": "pixels", "statistic": "redness"},
    "method": {"form": "absolute"},
    "data": {"prompts": "world"},
    "train": {"num_steps": 3, "learning_rate": 3e-4},
}


@pytest.fixture
def arms(tmp_path):
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(RECIPE))
    one = Arm("a", "Arm A", str(tmp_path / "short.yaml"))
    other = Arm("b", "Arm B", one.recipe, ("train.learning_rate=1.0e-3", "train.num_steps=2"))
    return one, other


@pytest.fixture
def trained(monkeypatch):
    """Calls, as (folder, resume), of a trainer that writes what a real one writes."""
    calls: list[tuple[str, bool]] = []

    def measured(step: int, photo: float) -> dict[str, Any]:
        rate = {"value": photo, "low": photo - 0.1, "high": photo + 0.1, "n": 8}
        return {"event": "evaluate", "step": step, "photo_rate": rate, "reward": 0.7, "seconds": 99}

    def train(settings: RunConfig, folder: Path, resume: bool, _: Sequence[str]) -> None:
        calls.append((folder.name, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "run.yaml").write_text(dump_run(settings))
        cost = {"seconds": 0.5, "nfe": {"forward": 80, "backward": 8}}
        updates = [
            {"event": "step", "step": step + 1, **cost} for step in range(settings.train.num_steps)
        ]
        records = [measured(0, 0.1), *updates[:2], measured(2, 0.3), *updates[2:], measured(3, 0.5)]
        lines = (json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text("".join(lines))
        (folder / "summary.json").write_text(json.dumps(FACTS))

    monkeypatch.setattr(sys.modules["directalign.training.run"], "run", train)
    return calls


def test_finished_runs_are_kept_interrupted_ones_resumed_others_refused(tmp_path, arms, trained):
    one, other = arms
    folder = run_arm(other, 3, tmp_path / "out")
    assert folder == tmp_path / "out" / "runs" / "b-seed3" and not (folder / "checkpoints").exists()
    run = load_run(folder / "run.yaml")
    assert (run.seed, run.train.learning_rate, run.train.num_steps) == (3, 1e-3, 2)
    finished, unfinished = (run_arm(one, seed, tmp_path) for seed in (0, 1))
    (unfinished / "summary.json").unlink()
    trained.clear()
    assert [run_arm(one, seed, tmp_path) for seed in (0, 1)] == [finished, unfinished]
    message = r"a-seed0 holds a finished run of other settings .*: remove .*a-seed0, or"
    with pytest.raises(DirectAlignError, match=message):
        run_arm(one.plus("train.num_steps=9"), 0, tmp_path)
    assert trained == [("a-seed1", True)]


def test_a_piece_is_measured_once_and_only_under_its_settings(tmp_path, arms):
    calls: list[int] = []

    def rows() -> list[dict[str, Any]]:
        calls.append(1)
        return [{"x": 1}]

    one, other = (settings_of(arm, 0) for arm in arms)
    first = piece(tmp_path, "p", one, rows)
    assert first[0]["x"] == 1 and {"commit", "machine", "versions"} < set(first[0])
    assert piece(tmp_path, "p", one, rows) == first and calls == [1]
    message = r"p\.jsonl was measured under other settings .*: remove .*p\.jsonl, or"
    with pytest.raises(DirectAlignError, match=message):
        piece(tmp_path, "p", other, rows)


def test_a_folder_belongs_to_one_study_in_one_size(tmp_path):
    claim(tmp_path / "out", "table1", quick=False)
    claim(tmp_path / "out", "table1", quick=False)
    message = "holds the full size of study table1, not the quick size of table1"
    with pytest.raises(DirectAlignError, match=message):
        claim(tmp_path / "out", "table1", quick=True)
    with pytest.raises(DirectAlignError, match="not the full size of anchor: choose another --out"):
        claim(tmp_path / "out", "anchor", quick=False)
    (tmp_path / "mine.txt").write_text("x")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DirectAlignError, match="holds something that is no study"):
            claim(taken, "table1", quick=True)


def test_a_budget_sets_the_length_of_a_run_by_the_cost_of_an_update(tmp_path, monkeypatch):
    """One branch: the NFE of the rollout and three for the trained call, per sample."""
    small = ("data.batch_size=2", "rollout.num_inference_steps=3")
    arm = Arm("direct_align", "Direct-Align", "world_direct_align", small)
    settings, kept = settings_of(arm, 0), tmp_path / "kept.json"
    assert price(settings, 2, kept) == 2 * (3 + 1 + 2)
    assert list(json.loads(kept.read_text()).values()) == [12.0]
    monkeypatch.setattr(runner, "measured_price", lambda settings, probed: 10.0)
    assert price(settings, 2, kept) == 12.0 and price(settings_of(arm, 1), 2, kept) == 10.0
    spend = Budget(calls=100, measurements=3, num_samples=8, diversity_prompts=1, probed=2)
    paid = [runner.within(each, arm, tmp_path) for each in (spend, spend.times(3))]
    runs = [settings_of(each, 0) for each in paid]
    assert [(run.train.num_steps, run.evaluate.every) for run in runs] == [(10, 4), (30, 4)]
    measured = runs[0].evaluate
    counts = (measured.num_samples, measured.num_samples_during, measured.diversity_prompts)
    assert counts == (8, 8, 1)
