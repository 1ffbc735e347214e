"""The study of the reward that listens: verdicts on planted rows, arms that differ in the reward alone, and the quick size."""

from __future__ import annotations

from pathlib import Path

import pytest

from directalign.studies import STUDIES, listening, run_study
from directalign.studies.comparing.statistics import SeedInterval
from directalign.studies.listening_story import verdict
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import read_rows

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(3, 9, "straighter"), (3, 18, "not told apart"), (30, 40, "less straight")],
)
def test_a_verdict_needs_intervals_that_lie_apart(low: float, high: float, said: str) -> None:
    assert (
        verdict(
            SeedInterval(value=20.0, low=17.0, high=23.0, n=9),
            SeedInterval(value=(low + high) / 2, low=low, high=high, n=9),
        )
        == said
    )


@pytest.mark.parametrize("form", ["relative", "anchored", "made_up"])
def test_tuned_and_original_differ_in_the_reward_alone(form: str, tmp_path: Path) -> None:
    arms = {arm.name: settings_of(arm, 0, RECIPES) for arm in listening.arms(tmp_path)}
    tuned, original = arms[f"{form}_tuned"], arms[f"{form}_original"]
    assert tuned != original and tuned.model_copy(update={"reward": original.reward}) == original
    assert STUDIES[listening.NAME] == listening.TITLE


def test_the_quick_study_leaves_a_reward_rows_a_text_and_figures(tmp_path: Path) -> None:
    out = run_study("listening", tmp_path / "study", quick=True, recipes=RECIPES).parent
    assert (out / "rewards" / "tuned" / "model.safetensors").is_file()
    rows = read_rows(out / "results.jsonl")
    assert [row["when"] for row in rows if row.get("kind") == "listen"] == ["before", "after"]
    assert {row["arm"] for row in rows if "kind" not in row} == {
        "relative_original",
        "relative_tuned",
    }
    assert {file.name for file in out.glob("*.png")} == {
        "listening_angles.png",
        "listening_relative.png",
    }
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "## Does it push straighter?" in text and "after 2 updates" in text
