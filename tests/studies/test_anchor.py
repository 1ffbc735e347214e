"""When the anchored reward fails and what it gives, on planted runs; that every case is a sound run; and the study in its quick size."""

from __future__ import annotations

from pathlib import Path

import pytest

from directalign.studies import STUDIES, anchor, anchor_story, run_study
from directalign.studies.anchor_cases import (
    CASES,
    GAPS,
    MAIN_SEEDS,
    RIVALS,
    SEEDS,
    Case,
    cases,
    lengthened,
)
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"


def planted(
    arm: str, curve: list[tuple[int, float, float]], seed: int = 0, group: str = "main"
) -> list[Row]:
    """A run whose measurements are (update, photo rate, content), in a recipe of 30 updates."""
    named: Row = {"arm": arm, "title": f"<{arm}>", "seed": seed, "group": group}
    return [
        {**named, "step": step, "length": step / 30, "photo_rate": photo, "content": content, "color_drift": 0.1 - 0.0001 * step, "seconds": step / 3,
         "call_equivalents": 10 * step}
        for step, photo, content in curve
    ]  # fmt: skip


HELD = [(0, 0.2, 1.0), (30, 0.8, 0.98), (90, 0.9, 0.97), (300, 0.95, 0.96)]
COLLAPSED = [(0, 0.2, 1.0), (15, 0.6, 0.97), (30, 0.85, 0.93), (60, 0.95, 0.7), (90, 1.0, 0.4)]


def test_the_best_photo_rate_counts_only_where_content_is_kept() -> None:
    assert anchor_story.best_kept(planted("a", HELD)) == 0.95
    assert anchor_story.best_kept(planted("a", COLLAPSED)) == 0.6
    assert anchor_story.best_kept(planted("a", [(0, 0.2, 1.0), (30, 0.9, 0.5)])) == 0.2


def test_failure_is_the_first_measurement_below_the_line() -> None:
    assert anchor_story.failed_at(planted("a", COLLAPSED)) == 60
    assert anchor_story.failed_at(planted("a", HELD)) is None
    assert anchor_story.failed_at(planted("a", [(0, 0.2, 0.85), (30, 0.3, 0.95)])) is None


@pytest.fixture
def rows() -> list[Row]:
    runs = [
        row
        for seed in range(3)
        for arm, curve in (("anchored", HELD), ("relative", COLLAPSED))
        for row in planted(arm, curve, seed)
    ]
    gaps = [
        {
            "kind": "gap",
            "arm": gap.name,
            "title": gap.title,
            "seed": 0,
            "cosine": 0.9,
            "gap_photo": 0.1,
            "gap_cg": -0.1,
            "cancelled": 0.95,
        }
        for gap in GAPS
    ]
    return [*runs, *planted("lora", HELD[:3], group="models"), *gaps]


def test_the_text_says_who_failed_and_when(rows: list[Row]) -> None:
    text = anchor_story.tell(rows)
    assert "Content fell below 0.9 for: <relative> (from update 60, 3 of 3 seeds)." in text
    assert "stayed above over the whole length for: <anchored>; <lora>." in text
    assert "| <anchored> | main | 3 | 10× | 0.95 (0.95–0.95) | 0 of 3 | – |" in text
    assert "| <relative> | main | 3 | 3× | 0.60 (0.60–0.60) | 3 of 3 | 60 |" in text
    assert "### At 10× the recommended length" in text


def test_the_text_compares_where_both_are(rows: list[Row]) -> None:
    text = anchor_story.tell(rows)
    assert (
        "Better than “<relative>” beyond the interval in: content after 30 updates, content after 90 updates"
        in text
    )
    assert (
        "Worse beyond the interval in: photo rate after 30 updates, photo rate after 90 updates"
        in text
    )
    assert "| at photo rate 0.95 |" in text


def test_figures_are_drawn_from_rows_alone(rows: list[Row], tmp_path: Path) -> None:
    assert [file.name for file in anchor_story.draw(rows, tmp_path)] == [
        "anchor_curves.png",
        "anchor_cases.png",
    ]
    assert all(file.stat().st_size > 10_000 for file in tmp_path.iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.arm.name)
def test_every_case_is_a_sound_run_of_its_reach(case: Case) -> None:
    run = settings_of(lengthened(case, False, RECIPES), 0, RECIPES)
    recipe = settings_of(case.arm, 0, RECIPES)
    assert (
        run.train.num_steps == case.reach * recipe.train.num_steps
        and run.train.num_steps % run.evaluate.every == 0
    )
    assert (
        run.evaluate.num_pairs == run.evaluate.pairs_during == 64
        and run.train.checkpoint_every == 0
    )
    is_anchored = case.arm.name not in RIVALS and not case.arm.name.endswith("_relative")
    assert (run.method.form == "anchored") == is_anchored and run.method.words.negative


def test_the_main_cases_have_five_seeds_and_one_runs_ten_lengths() -> None:
    main = [case for case in CASES if case.group == "main"]
    assert [case.arm.name for case in main] == ["anchored", *RIVALS] and all(
        case.seeds == MAIN_SEEDS and len(case.seeds) == 5 for case in main
    )
    assert main[0].reach == 10 and all(
        case.seeds == SEEDS for case in CASES if case.group != "main"
    )
    assert len({case.arm.name for case in CASES}) == len(CASES)
    assert {case.group for case in CASES} == {
        "main",
        "tolerance",
        "learning rate",
        "words",
        "models",
        "methods",
    }
    assert [case.arm.name for case in cases(quick=True)] == ["anchored", "relative"] and STUDIES[
        anchor.NAME
    ] == anchor.TITLE


def test_the_quick_study_leaves_rows_a_text_and_figures(tmp_path: Path) -> None:
    page = run_study("anchor", tmp_path / "anchor", quick=True, recipes=RECIPES)
    rows = read_rows(page.parent / "results.jsonl")
    assert {(row["arm"], row["step"], row["length"]) for row in rows if "kind" not in row} == {
        (arm, s, s / 2) for arm in ("anchored", "relative") for s in (0, 2)
    }
    gaps = {row["arm"]: row["cosine"] for row in rows if row.get("kind") == "gap"}
    assert gaps["narrow_gap"] > gaps["recipe_gap"] > gaps["wide_gap"]
    assert {file.name for file in page.parent.glob("*.png")} == {
        "anchor_curves.png",
        "anchor_cases.png",
    }
    assert "## When does it fail?" in page.read_text(encoding="utf-8")
