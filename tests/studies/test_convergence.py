"""Costs of a level are read off as they were spent, rivals that do not get there are said not to, and the study runs in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from directalign.studies import convergence, convergence_figures, convergence_text, costs, run_study
from directalign.studies.comparing.reading import of_runs
from directalign.studies.comparing.statistics import SeedInterval
from directalign.studies.convergence import draw, home_of, tell
from directalign.studies.costs import Ratio, against_paper, cost, ratio, spent
from directalign.studies.running.records import read_rows
from planted_costs import depths, runs

RECIPES = Path(__file__).parents[2] / "recipes"
PRICES = {"srpo": 2.0, "srpo_official": 4.0, "refl": 8.0, "flow_grpo": 200.0, "drtune": 6.0}
SUMMITS = {"refl": 0.7, "drtune": 0.3}


@pytest.fixture
def rows() -> list[dict]:
    return [*runs(PRICES, SUMMITS), *depths("flux", 8, 1.5), *depths("sd", 4, 0.9)]


# --- costs ------------------------------------------------------------------------------------------------------------


def test_a_cost_is_read_off_the_straight_line(rows: list[dict]) -> None:
    updates = 10 * (0.4 - 0.1) / (0.95 - 0.1)
    assert cost(rows, "srpo", 0, "step", 0.4) == pytest.approx(updates)
    assert cost(rows, "srpo", 2, "forward_calls", 0.4) == pytest.approx(2 * 1.1**2 * updates)
    assert cost(rows, "drtune", 0, "step", 0.4) is None
    found, reached, seeds = spent(rows, "srpo", "seconds", 0.4)
    assert (
        found is not None
        and found["value"] == pytest.approx(0.2 * updates * (1 + 1.1 + 1.21) / 3)
        and (reached, seeds) == (3, 3)
    )


def test_a_ratio_is_taken_seed_by_seed(rows: list[dict]) -> None:
    found = ratio(rows, "flow_grpo", "srpo", "call_equivalents", 0.6)
    assert found.always and found.beyond is None and found.interval is not None
    assert found.interval["value"] == pytest.approx(100) and found.interval["low"] == pytest.approx(
        100
    )
    assert found.written() == "100.0 (100.0–100.0)"
    slower = (0.95 - 0.1) / (0.7 - 0.1)
    refl = ratio(rows, "refl", "srpo", "seconds", 0.6).interval
    assert refl is not None and refl["value"] == pytest.approx(4 * slower)


def test_what_was_not_reached_has_a_lower_bound_and_no_ratio(rows: list[dict]) -> None:
    found = ratio(rows, "drtune", "srpo", "forward_calls", 0.6)
    ours = 10 * (0.6 - 0.1) / (0.95 - 0.1)
    assert (
        found.interval is None
        and not found.always
        and found.beyond == pytest.approx(20 * 6 / (2 * ours))
    )
    assert found.written() == "> 10, not reached"


def test_some_seeds_are_counted_as_some() -> None:
    rows = [
        *runs({"srpo": 2.0}, {}, (0, 1)),
        *runs({"refl": 4.0}, {}, (0,)),
        *runs({"refl": 4.0}, {"refl": 0.2}, (1,)),
    ]
    found = ratio(rows, "refl", "srpo", "step", 0.6)
    assert found.written() == "1.0, 1 of 2 seeds" and found.beyond is not None


def test_where_ours_does_not_get_there_nothing_is_said() -> None:
    rows = runs({"srpo": 2.0, "refl": 4.0}, {"srpo": 0.3})
    assert ratio(rows, "refl", "srpo", "step", 0.6) == Ratio(None, None, 0, 0)
    assert ratio(rows, "refl", "srpo", "step", 0.6).written() == "–"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (80.0, 95.0, "in agreement"),
        (10.0, 20.0, "less than"),
        (100.0, 120.0, "more than"),
        (60.0, 76.0, "in agreement"),
        (None, None, "no interval"),
    ],
)
def test_an_interval_stands_to_the_paper(low: float | None, high: float | None, words: str) -> None:
    found = Ratio(SeedInterval(value=80.0, low=low, high=high, n=3), None, 3, 3)
    assert words in against_paper(found, costs.PAPER["flow_grpo"])


def test_a_bound_may_suffice() -> None:
    assert "at least what the paper says" in against_paper(Ratio(None, 80.0, 0, 3), (75.0, 90.0))
    assert against_paper(Ratio(None, 50.0, 0, 3), (75.0, 90.0)) == "cannot be judged here"


# --- text and figures -------------------------------------------------------------------------------------------------


def test_the_text_says_what_the_rows_say(rows: list[dict]) -> None:
    text = tell(rows)
    assert (
        "| Flow-GRPO | 100.0 (100.0–100.0) | 100.0 (100.0–100.0) | 100.0 (100.0–100.0) | 75–90 |"
        in text
    )
    assert "| ReFL | 5.7 (5.7–5.7) | 5.7 (5.7–5.7) | > 10, not reached | 3 |" in text
    assert (
        "Flow-GRPO over SRPO, official at 60 % (the paper: 75–90): 50.0 (50.0–50.0) in call equivalents, less than the paper says"
        in text
    )
    assert "| DRTune | not reached |" in text
    assert (
        "FLUX, 8 steps: the whole chain takes 3.00 (2.40–3.75) times as long as one injection."
        in text
    )
    assert (
        "at the initial noise is 25.63 (20.50–32.04) times that at the image, and largest 8 call(s) before it"
        in text
    )
    assert "SD, 4 steps" in text and "largest 0 call(s) before it (sigma 0.00)" in text


def test_without_the_released_srpo_its_table_is_left_out() -> None:
    rows = [*runs({"srpo": 2.0, "leapalign": 6.0}, {}), *depths("flux", 2, 1.1)]
    text = tell(rows)
    assert "as released" not in text and "No method that the paper gives a cost of was run." in text


def test_the_figures(rows: list[dict], tmp_path: Path) -> None:
    files = draw(rows, tmp_path / "img")
    assert [file.name for file in files] == [
        "convergence_curves.png",
        "convergence_cost.png",
        "convergence_depth.png",
    ]
    assert all(10_000 < file.stat().st_size < 150_000 for file in files)


def test_the_figure_s_title_is_what_was_measured(rows: list[dict]) -> None:
    assert (
        convergence_figures._cost_title(rows)
        == "For a photo rate of 75 %, Flow-GRPO pays 100 times the network calls of SRPO, anchored"
    )
    assert "How many times" in convergence_figures._cost_title(
        [row for row in rows if row["arm"] != "flow_grpo"]
    )


def test_a_curve_leaves_out_what_cost_nothing(rows: list[dict]) -> None:
    line = convergence_figures.lines_of(of_runs(rows), "step", "photo_rate")[0]
    assert (
        line.x == pytest.approx(list(range(2, 21, 2)))
        and line.y[0] == pytest.approx(0.27)
        and line.low == pytest.approx(line.high)
    )


# --- the study --------------------------------------------------------------------------------------------------------


def test_a_finished_table1_lends_its_runs(tmp_path: Path) -> None:
    out, lent = tmp_path / "study_convergence", tmp_path / "study_table1"
    assert home_of(out, quick=True) == out
    lent.mkdir()
    (lent / "study.json").write_text(json.dumps({"study": "table1", "size": "quick"}))
    assert home_of(out, quick=True) == out  # not finished
    (lent / "results.jsonl").write_text("")
    assert home_of(out, quick=True) == lent and home_of(out, quick=False) == out


def test_the_study_in_miniature(tmp_path: Path) -> None:
    out = tmp_path / "study_convergence"
    page = run_study("convergence", out, True, RECIPES).read_text(encoding="utf-8")
    rows = read_rows(out / "results.jsonl")
    assert {row["arm"] for row in rows if "kind" not in row} == set(convergence.QUICK_ARMS)
    assert {row["kind"] for row in rows if "kind" in row} == {"depth", "state"}
    assert page.startswith("> Quick size") and all(
        (out / f"convergence_{what}.png").exists() for what in ("curves", "cost", "depth")
    )
    assert "## Beside the paper" in page and convergence_text.claim("flow_grpo") in page

    assert convergence.measure(out, True, RECIPES) == rows  # kept, not trained again
