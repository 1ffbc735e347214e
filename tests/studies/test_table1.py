"""The main comparison: its sentences on planted runs, and the whole command in its quick size on the real world."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import run
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.studies import table1
from directalign.studies.running.arms import ARMS
from directalign.studies.running.records import read_rows, seeds_of

RECIPES = Path(__file__).parents[2] / "recipes"


# --- sentences --------------------------------------------------------------------------------------------------------

PLANTED = [
    *(row for seed in (0, 1, 2) for row in run("srpo", seed, [0.1, 0.5, 0.9], 100)),
    *(
        row
        for seed in (0, 1, 2)
        for row in run("refl", seed, [0.1, 0.5, 0.9], 100, color_drift=0.3)
    ),
    *(row for seed in (0, 1, 2) for row in run("flow_grpo", seed, [0.1, 0.3, 0.5, 0.6], 3000)),
]


def test_the_text_says_what_the_rows_say() -> None:
    text = table1.tell(PLANTED)
    assert "Every run is read off where it has spent 200 network calls." in text
    assert (
        "The highest photo rate there is that of SRPO, anchored: 90 % (90–90), with content at 100 % (100–100)."
        in text
    )
    assert (
        "photo rate first reaches 0.900, the highest that two thirds of the methods reach with every seed."
        in text
    )
    assert "Not reached by Flow-GRPO (0 of 3 seeds)." in text
    assert "From the lowest colour drift to the highest: SRPO, anchored 0.090, ReFL 0.300." in text
    assert "SRPO, anchored reaches a photo rate of 0.900 with every seed; so do ReFL." in text
    assert (
        "The colour drift of SRPO, anchored is the lowest of them: 0.090 (0.090–0.090) against 0.300 (0.300–0.300) of ReFL"
        in text
    )
    # 0.6 is reached after 125 calls, and after 9000
    assert (
        "(0.600), Flow-GRPO takes 72.0 (72.0–72.0) times the network calls and 72.0 (72.0–72.0) times the seconds of SRPO, anchored."
        in text
    )


def test_a_lower_drift_of_another_is_said_as_plainly() -> None:
    rows = [row | ({"color_drift": 0.01} if row["arm"] == "refl" else {}) for row in PLANTED]
    assert (
        "The colour drift of SRPO, anchored is not the lowest, ReFL has no more: 0.090"
        in table1.tell(rows)
    )


def test_nothing_is_compared_at_a_level_that_nobody_reaches(tmp_path: Path) -> None:
    rows = [*run("srpo", 0, [0.1, 0.1], 100), *run("refl", 0, [0.1, 0.05], 100)]
    text = table1.tell(rows)
    assert (
        "Fewer than two thirds of the methods raise the photo rate above the base model's with every seed"
        in text
    )
    assert "SRPO, anchored never raises the photo rate" in text
    assert [file.name for file in table1.draw(rows, tmp_path)] == [
        "table1_trails.png",
        "table1_cost.png",
    ]


def test_the_figures_are_pictures_named_after_the_study(tmp_path: Path) -> None:
    files = table1.draw(PLANTED, tmp_path)
    assert [file.name for file in files] == [
        "table1_trails.png",
        "table1_cost.png",
        "table1_matched.png",
    ]
    assert all(
        file.parent == tmp_path and file.read_bytes().startswith(b"\x89PNG") for file in files
    )


# --- the command ------------------------------------------------------------------------------------------------------


def study(out: Path, *words: str) -> Result:
    return CliRunner().invoke(
        app, ["study", "table1", "--out", str(out), "--recipes", str(RECIPES), *words]
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "table1"
    result = study(out, "--quick")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(out / "README.md")
    return out


def test_a_quick_study_runs_every_method_within_the_same_budget(quick: Path) -> None:
    rows = read_rows(quick / "results.jsonl")
    assert seeds_of(rows) == [0] and list(dict.fromkeys(row["arm"] for row in rows)) == [
        arm.name for arm in ARMS
    ]
    for arm in ARMS:
        measured = [row for row in rows if row["arm"] == arm.name]
        calls = [row["call_equivalents"] for row in measured]
        assert calls[0] == 0 and sorted(calls) == calls and calls[-1] >= table1.QUICK.calls / 2, (
            arm.name
        )
        numbers = (
            "photo_rate",
            "photo_rate_low",
            "content",
            "score_pos",
            "color_drift",
            "saturation_drift",
            "sharpness_drift",
            "diversity",
            "seconds",
        )
        assert all(isinstance(row[name], float) for row in measured for name in numbers), arm.name
        assert all(row["commit"] is None or len(row["commit"]) >= 40 for row in measured) and all(
            row["machine"] and row["versions"] for row in measured
        )


def test_a_quick_study_leaves_a_page_that_says_what_it_is(quick: Path) -> None:
    text = (quick / "README.md").read_text(encoding="utf-8")
    assert text.splitlines()[0].startswith("> Quick size: it shows that the wiring works")
    assert all(f"| {arm.title} |" in text for arm in ARMS)
    for figure in ("table1_trails.png", "table1_cost.png"):
        assert f"]({figure})" in text and (quick / figure).read_bytes().startswith(b"\x89PNG")


def test_a_second_call_trains_nothing(quick: Path) -> None:
    def state() -> dict[Path, int]:
        return {
            file: file.stat().st_mtime_ns
            for name in ("metrics.jsonl", "prices.json")
            for file in quick.rglob(name)
        }

    before, rows = state(), (quick / "results.jsonl").read_bytes()
    assert len(before) == len(ARMS) + 1
    again = study(quick, "--quick")
    assert again.exit_code == 0, again.output
    assert state() == before and (quick / "results.jsonl").read_bytes() == rows


def test_a_full_study_is_not_mixed_with_a_quick_one(quick: Path) -> None:
    result = study(quick)
    assert (
        result.exit_code == 1
        and "holds the quick size of study table1, not the full size" in result.output
    )
