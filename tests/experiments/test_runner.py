"""Arms and seeds become runs, measurements become pieces, budgets become updates: made once, resumed when interrupted, refused under other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from directalign.config import RunConfig
from directalign.config.load import RECIPES, dump_run, load_run
from directalign.types import DirectAlignError
from experiments import runner
from experiments.runner import (
    Arm,
    Budget,
    claim,
    num_steps_of,
    piece,
    price,
    run_arm,
    run_arms,
    settings_of,
    sized,
    within,
)

FACTS = {"commit": "0123abc", "machine": {"cores": 2}, "versions": {"torch": "2.13"}}
RECIPE = {
    "name": "test",
    "model": {"architecture": "flux", "path": "world:flux"},
    "reward": {"name": "pixels", "statistic": "redness"},
    "method": {"form": "absolute"},
    "data": {"prompts": "world"},
    "train": {"num_steps": 3, "learning_rate": 3e-4},
}
A, B = (
    Arm("a", "Arm A", "short"),
    Arm("b", "Arm B", "short", ("train.learning_rate=1.0e-3", "train.num_steps=2")),
)


def update(step: int) -> dict[str, Any]:
    return {
        "event": "step",
        "step": step,
        "loss": 0.1,
        "seconds": 0.5,
        "nfe": {"forward": 80, "backward": 8},
    }


def measurement(step: int, photo: float) -> dict[str, Any]:
    rate = {"value": photo, "low": photo - 0.1, "high": photo + 0.1, "n": 8}
    return {"event": "evaluate", "step": step, "photo_rate": rate, "reward": 0.7, "seconds": 99.0}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "short.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Calls, as (folder, resume), of a trainer that leaves what a real one leaves."""
    calls: list[tuple[str, bool]] = []

    def train(settings: RunConfig, folder: Path, resume: bool) -> Path:
        calls.append((folder.name, resume))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "run.yaml").write_text(dump_run(settings))
        updates = [update(step + 1) for step in range(settings.train.num_steps)]
        records = [
            measurement(0, 0.1),
            *updates[:2],
            measurement(2, 0.3),
            *updates[2:],
            measurement(3, 0.5),
        ]
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
        (folder / "summary.json").write_text(json.dumps(FACTS))
        return folder

    monkeypatch.setattr(runner, "train", train)
    return calls


def test_a_run_is_the_recipe_with_overrides_and_seed(
    tmp_path: Path, recipes: Path, trained: list[tuple[str, bool]]
) -> None:
    folder = run_arm(B, 3, tmp_path / "out", recipes)
    assert folder == tmp_path / "out" / "runs" / "b-seed3" and trained == [("b-seed3", False)]
    run = load_run(folder / "run.yaml")
    assert (run.seed, run.train.learning_rate, run.train.num_steps) == (3, 1e-3, 2)
    assert run == settings_of(B, 3, recipes) and not (folder / "checkpoints").exists()


def test_finished_runs_are_kept_interrupted_ones_resumed_others_refused(
    tmp_path: Path, recipes: Path, trained: list[tuple[str, bool]]
) -> None:
    finished, unfinished = run_arm(A, 0, tmp_path, recipes), run_arm(A, 1, tmp_path, recipes)
    (unfinished / "summary.json").unlink()
    trained.clear()
    assert [run_arm(A, seed, tmp_path, recipes) for seed in (0, 1)] == [finished, unfinished]
    assert trained == [("a-seed1", True)]
    with pytest.raises(
        DirectAlignError,
        match=r"a-seed0 holds a finished run of other settings .*: remove .*a-seed0, or",
    ):
        run_arm(A.plus("train.num_steps=9"), 0, tmp_path, recipes)
    with pytest.raises(DirectAlignError, match=r"gone\.yaml: no such recipe"):
        run_arm(Arm("c", "C", "gone"), 0, tmp_path, recipes)
    assert trained == [("a-seed1", True)]


def test_rows_hold_costs_of_updates_alone(
    tmp_path: Path, recipes: Path, trained: list[tuple[str, bool]]
) -> None:
    rows = run_arms("demo", [A, B], [0, 1], tmp_path, recipes)
    assert [name for name, _ in trained] == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    assert [(row["arm"], row["seed"]) for row in rows[::3]] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]
    assert rows[1] == {
        "study": "demo", "arm": "a", "title": "Arm A", "seed": 0, "step": 2,
        "seconds": 1.0, "forward_calls": 160, "backward_calls": 16, "call_equivalents": 192, "learning_rate": 3e-4,
        "photo_rate": 0.3, "photo_rate_low": 0.3 - 0.1, "photo_rate_high": 0.3 + 0.1, "reward": 0.7, **FACTS,
    }  # fmt: skip
    assert (rows[0]["seconds"], rows[0]["call_equivalents"], rows[2]["seconds"]) == (0.0, 0, 1.5)


def test_a_piece_is_measured_once_and_only_under_its_settings(
    tmp_path: Path, recipes: Path
) -> None:
    calls: list[int] = []
    settings = settings_of(A, 0, recipes)

    def rows() -> list[dict[str, Any]]:
        calls.append(1)
        return [{"x": 1}]

    first = piece(tmp_path, "p", settings, rows)
    assert first[0]["x"] == 1 and {"commit", "machine", "versions"} < set(first[0])
    assert piece(tmp_path, "p", settings, rows) == first and calls == [1]
    with pytest.raises(
        DirectAlignError,
        match=r"p\.jsonl was measured under other settings .*: remove .*p\.jsonl, or",
    ):
        piece(tmp_path, "p", settings_of(B, 0, recipes), rows)


def test_a_folder_belongs_to_one_study_in_one_size(tmp_path: Path) -> None:
    claim(tmp_path / "out", "table1", quick=False)
    claim(tmp_path / "out", "table1", quick=False)
    with pytest.raises(
        DirectAlignError, match="holds the full size of study table1, not the quick size of table1"
    ):
        claim(tmp_path / "out", "table1", quick=True)
    with pytest.raises(
        DirectAlignError, match="not the full size of control_phrases: choose another --out"
    ):
        claim(tmp_path / "out", "control_phrases", quick=False)
    (tmp_path / "mine.txt").write_text("x")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DirectAlignError, match="holds something that is no study"):
            claim(taken, "table1", quick=True)


def test_quick_size_overrules_an_arm_and_full_size_does_not() -> None:
    arm = Arm("x", "X", "world_srpo", ("evaluate.num_samples=7", "train.num_steps=9"))
    full, quick = (settings_of(sized([arm], size)[0], 0, RECIPES) for size in (False, True))
    assert (full.evaluate.num_samples, full.train.num_steps) == (7, 9)
    assert (
        quick.evaluate.num_samples,
        quick.train.num_steps,
        quick.rollout.num_inference_steps,
    ) == (16, 2, 2)
    assert num_steps_of("world_srpo", RECIPES, ["train.num_steps=4"]) == 4


# --- budgets ------------------------------------------------------------------------------------

SMALL = Arm(
    "direct_align",
    "Direct-Align",
    "world_direct_align",
    ("data.batch_size=2", "rollout.num_inference_steps=3"),
)
SPEND = Budget(calls=100, measurements=3, num_samples=8, diversity_prompts=1, probed=2)


def test_the_price_of_an_update_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One branch: the rollout's calls, and three for the trained one, per sample."""
    settings, kept = settings_of(SMALL, 0, RECIPES), tmp_path / "prices.json"
    assert price(settings, 2, kept) == 2 * (3 + 1 + 2) and list(
        json.loads(kept.read_text()).values()
    ) == [12.0]
    monkeypatch.setattr(runner, "measured_price", lambda settings, probed: 7.0)
    assert (
        price(settings, 2, kept) == 12.0 and price(settings_of(SMALL, 1, RECIPES), 2, kept) == 7.0
    )


def test_a_budget_decides_the_length_of_a_run_and_its_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "measured_price", lambda settings, probed: 10.0)
    runs = [
        settings_of(within(each, SMALL, tmp_path, RECIPES), 0, RECIPES)
        for each in (SPEND, SPEND.times(3))
    ]
    assert [(run.train.num_steps, run.evaluate.every) for run in runs] == [(10, 4), (30, 4)]
    assert (
        runs[0].evaluate.num_samples,
        runs[0].evaluate.num_samples_during,
        runs[0].evaluate.diversity_prompts,
    ) == (8, 8, 1)
