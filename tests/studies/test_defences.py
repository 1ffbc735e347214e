"""What the study of defences says of planted runs; that every arm is a sound run; and the study in its quick size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from directalign.planning import check_method, check_steps
from directalign.studies import STUDIES, defences, defences_story, run_study
from directalign.studies.running.experiment import settings_of
from directalign.studies.running.records import Row, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"
FACT: Row = {
    "kind": "directions",
    "arm": "texts",
    "title": "texts",
    "seed": 100,
    "directions": 1,
    "shared": 0.27,
    "wanted": 0.17,
    "held": 0.16,
}


def planted(arm: str, seed: int, photo: list[float], drift: float) -> list[Row]:
    """A run whose drift and leak grow with the photo rate by the factor `drift`; the held-out reward falls by it."""

    def row(step: int, rate: float) -> dict[str, Any]:
        held_out = {"held_out_raw_pos": 0.7 + rate / 10, "held_out_second": 0.8 - drift * rate}
        leak = {
            "off_topic_held_out_raw_pos": 0.6 + drift * rate,
            "off_topic_color_drift": drift * rate,
            "off_topic_style_kept": 1.0,
        }
        return {
            "arm": arm,
            "title": f"<{arm}>",
            "seed": seed,
            "step": step,
            "photo_rate": rate,
            "content": 1.0,
            "color_drift": drift * rate,
            **held_out,
            **leak,
        }

    return [row(10 * place, rate) for place, rate in enumerate(photo)]


@pytest.fixture
def rows() -> list[Row]:
    runs = [
        row for seed in range(3) for row in planted("plain", seed, [0.1, 0.5 + seed / 100], 0.2)
    ]
    runs += [row for seed in range(3) for row in planted("plain_texts", seed, [0.1, 0.9], 0.05)]
    return [{**FACT, "gain": None, "explained": None}, *runs]


def test_a_defence_is_compared_where_both_have_come_equally_far(rows: list[Row]) -> None:
    text = defences_story.tell(rows)
    assert "## At a photo rate of 0.50" in text
    assert "| <plain_texts>, against <plain> | 0.50 | −0.075" in text
    assert (
        "changes the colour drift of “<plain>” by −0.075" in text
        and "does not exclude 0" not in text
    )
    assert "| texts alone | 1 | 0.270 | 0.170 | 0.160 | – | – |" in text
    assert "| base model | 0.10 |" in text


def test_a_difference_that_may_be_nothing_says_so(rows: list[Row]) -> None:
    drifts = iter([0.1, 0.4, -0.2])
    alike = [
        row
        for seed in range(3)
        for row in planted("plain_learned", seed, [0.1, 0.5 + seed / 100], next(drifts))
    ]
    assert "an interval that does not exclude 0" in defences_story.tell([*rows, *alike])


def test_one_seed_has_no_interval_to_speak_of(rows: list[Row]) -> None:
    assert "does not exclude 0" not in defences_story.tell(
        [row for row in rows if row["seed"] in (0, 100)]
    )


@pytest.mark.parametrize("arm", defences.arms(Path("some folder")), ids=lambda arm: arm.name)
def test_every_arm_is_a_sound_run(arm: defences.Arm) -> None:
    run = settings_of(arm, 0, RECIPES)
    check_method(run)
    check_steps(run)
    assert set(run.evaluate.rewards) == {"second", "raw"} and run.evaluate.off_topic == "world"
    blind = getattr(run.reward, "project", None)
    source = arm.name.partition("_")[2]
    assert blind == (f"some folder/directions/{source}.safetensors" if source else None)


def test_the_direction_is_learned_from_another_seed() -> None:
    assert defences.LEARNED_FROM not in defences.SEEDS and STUDIES[defences.NAME] == defences.TITLE
    assert all(
        request.keep.negative for request in defences.requests_for(Path("run"), RECIPES, 4).values()
    )


def test_the_quick_study_from_end_to_end(tmp_path: Path) -> None:
    page = run_study("defences", tmp_path / "study", quick=True, recipes=RECIPES)
    found = read_rows(tmp_path / "study" / "results.jsonl")
    assert [row["arm"] for row in found if row.get("kind") == "directions"] == [
        "learned",
        "probes",
        "texts",
    ]
    assert {row["arm"] for row in found if "kind" not in row} == {"plain", "plain_texts"}
    assert (
        "What each defence changes" in page.read_text()
        and (tmp_path / "study" / "defences_curves.png").is_file()
    )
