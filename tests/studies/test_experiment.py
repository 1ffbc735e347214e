"""Arms and seeds become runs: trained once, resumed when cut short, refused under other settings, cleared of checkpoints at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_records import FACTS, RECIPE, measurement, update

from directalign.config import RunConfig
from directalign.config.load import dump_run, load_run
from directalign.studies.running.experiment import run_arm, run_arms, settings_of
from directalign.studies.running.records import Arm
from directalign.types import DirectAlignError

Trained = list[tuple[str, bool]]
A, B = Arm("a", "Arm A", "short"), Arm("b", "Arm B", "short", ("train.learning_rate=1.0e-3", "train.num_steps=2"))


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "short.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Calls of a trainer that leaves what a real one leaves, as (folder, resume)."""
    calls: Trained = []

    def train(settings: RunConfig, folder: Path, resume: bool) -> Path:
        calls.append((folder.name, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "run.yaml").write_text(dump_run(settings))
        records: list[dict[str, Any]] = [measurement(0, 0.1), *(update(step + 1) for step in range(settings.train.num_steps)), measurement(3, 0.5)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "summary.json").write_text(json.dumps(FACTS))
        return folder

    monkeypatch.setattr("directalign.studies.running.experiment.train", train)
    return calls


def test_a_run_is_the_recipe_with_the_arms_overrides_and_the_seed(tmp_path: Path, recipes: Path, trained: Trained) -> None:
    folder = run_arm(B, 3, tmp_path / "out", recipes)
    assert folder == tmp_path / "out" / "runs" / "b-seed3" and trained == [("b-seed3", False)]
    run = load_run(folder / "run.yaml")
    assert (run.seed, run.train.learning_rate, run.train.num_steps) == (3, 1e-3, 2)
    assert run == settings_of(B, 3, recipes) and not (folder / "checkpoints").exists()


def test_a_finished_run_is_kept_and_an_unfinished_one_goes_on(tmp_path: Path, recipes: Path, trained: Trained) -> None:
    finished, unfinished = run_arm(A, 0, tmp_path, recipes), run_arm(A, 1, tmp_path, recipes)
    (unfinished / "summary.json").unlink()
    trained.clear()
    assert [run_arm(A, seed, tmp_path, recipes) for seed in (0, 1)] == [finished, unfinished]
    assert trained == [("a-seed1", True)]


def test_a_finished_run_of_other_settings_is_refused_by_name(tmp_path: Path, recipes: Path, trained: Trained) -> None:
    run_arm(A, 0, tmp_path, recipes)
    other = Arm("a", "Arm A", "short", ("train.num_steps=9",))
    with pytest.raises(DirectAlignError, match=r"a-seed0 holds a finished run of other settings .*: remove .*a-seed0, or choose another --out"):
        run_arm(other, 0, tmp_path, recipes)
    assert len(trained) == 1


def test_all_arms_are_run_at_the_first_seed_before_the_next(tmp_path: Path, recipes: Path, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_arms("demo", [A, B], [0, 1], tmp_path, recipes)
    assert [name for name, _ in trained] == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    assert [(row["arm"], row["seed"], row["step"]) for row in rows] == [(arm, seed, step) for arm in "ab" for seed in (0, 1) for step in (0, 3)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0] == "demo: a, seed 0: update 3 after 2 s, photo rate 0.500, reward 0.700"


def test_a_missing_recipe_is_named(tmp_path: Path, recipes: Path, trained: Trained) -> None:
    with pytest.raises(DirectAlignError, match=r"gone\.yaml: no such recipe"):
        run_arm(Arm("c", "C", "gone"), 0, tmp_path, recipes)
    assert trained == []
