"""What the study of stopping says of planted runs; that every arm is a sound run; and the study in its quick size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from directalign.planning import check_method, check_steps
from directalign.studies import STUDIES, run_study, stopping, stopping_story
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"


def free(seed: int, content: list[float], photo: list[float], base: float = 1.0) -> list[Row]:
    named = {"arm": "anchored_free", "title": "anchored, no control", "seed": seed}
    measured = {
        **named,
        "arm": "anchored_judged",
        "step": 0,
        "content": base,
        "photo_rate": photo[0],
        "color_drift": 0.02,
    }
    points = enumerate(zip(content, photo, strict=True))
    return [
        measured,
        *(
            {**named, "step": 10 * place, "content": c, "photo_rate": p, "color_drift": 0.02}
            for place, (c, p) in points
        ),
    ]


def ending(rule: str, seed: int, photo: float, content: float, reason: str | None) -> Row:
    told = {
        "updates": 30,
        "reason": reason,
        "kept": 10,
        "photo_rate": photo,
        "content": content,
        "color_drift": 0.01,
    }
    return {
        "kind": "ending",
        "arm": f"anchored_{rule}",
        "title": f"anchored, {rule}",
        "form": "anchored",
        "rule": rule,
        "seed": seed,
        **told,
    }


@pytest.fixture
def rows() -> list[Row]:
    runs = [
        row for seed in range(2) for row in free(seed, [1.0, 0.98, 0.9, 0.2], [0.1, 0.8, 0.95, 1.0])
    ]
    for seed in range(2):
        runs.append(ending("free", seed, 1.0, 0.2, None))
        runs.append(ending("judged", seed, 0.79, 0.98, "drift"))
        runs.append(ending("unjudged", seed, 0.95, 0.9, "score_peak" if seed else None))
    return runs


def test_the_best_in_hindsight_is_within_the_budget() -> None:
    def best(*run: Any, **base: float) -> int:
        return stopping_story.best_of("anchored", 0, free(0, *run, **base))["step"]

    assert best([1.0, 0.98, 0.9], [0.1, 0.8, 0.95]) == 10
    assert best([1.0, 0.9], [0.1, 0.95]) == 0
    assert best([1.0, 0.9], [0.1, 0.95], base=0.93) == 10, "the base model as the same pairs see it"
    assert best([1.0, 1.0, 1.0], [0.1, 0.9, 0.9]) == 10, "among equals the earliest"


def test_each_rule_is_held_against_the_best(rows: list[Row]) -> None:
    text = stopping_story.tell(rows)
    assert "ends with 80 % (80–80) of the content lost" in text
    assert (
        "With budget and judge 2 of 2 runs ended themselves; what they keep is 1.0 (1.0–1.0) points"
        in text
    )
    assert "2 of 2 are within 2 and 3 points" in text
    assert (
        "With absolute score alone 1 of 2 runs ended themselves" in text
        and "0 of 2 are within" in text
    )
    assert "| budget and judge | 0 | 30 | drift | 10 | 0.790 | 0.980 | 0.010 | 0.800 | 10 |" in text


def test_in_short_every_rule_and_the_best_have_a_line(rows: list[Row]) -> None:
    lines = stopping_story.in_short(rows).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "anchored, no control",
        "anchored, budget and judge",
        "anchored, absolute score alone",
        "anchored, best in hindsight",
    ]
    assert (
        lines[1]
        == "| anchored, budget and judge | 30 | 10 | 79 % (79–79) | 98 % (98–98) | 0.010 (0.010–0.010) |"
    )
    assert (
        lines[3]
        == "| anchored, best in hindsight | – | 10 | 80 % (80–80) | 98 % (98–98) | 0.020 (0.020–0.020) |"
    )


def test_a_plane_for_every_form(rows: list[Row], tmp_path: Path) -> None:
    assert [file.name for file in stopping_story.draw(rows, tmp_path)] == ["stopping_anchored.png"]


@pytest.mark.parametrize("arm", stopping.arms(RECIPES), ids=lambda arm: arm.name)
def test_every_arm_is_a_sound_run(arm: stopping.Arm) -> None:
    run = settings_of(arm, 0, RECIPES)
    check_method(run)
    check_steps(run)
    assert run.train.num_steps == 300 and (run.stop is None) == arm.name.endswith("_free")


def test_the_quick_study_from_end_to_end(tmp_path: Path) -> None:
    page = run_study("stopping", tmp_path / "study", quick=True, recipes=RECIPES)
    found = read_rows(tmp_path / "study" / "results.jsonl")
    assert STUDIES["stopping"] == stopping.TITLE
    assert [row["rule"] for row in found if row.get("kind") == "ending"] == [
        "free",
        "judged",
        "unjudged",
    ]
    assert (
        "Without control the run ends with" in page.read_text()
        and (tmp_path / "study" / "stopping_anchored.png").is_file()
    )
