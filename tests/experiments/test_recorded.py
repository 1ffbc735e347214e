"""Every recorded study gives its tables and figures, and the comparisons use what the recorded studies chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from directalign.types import DirectAlignError
from experiments import learning_rates
from experiments.rows import Rows, read_rows
from experiments.runner import METHODS, STUDIES, load_study

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks/results/studies"
PINNED = {
    "table1.matched_photo_rate": "| SRPO, official | 0.804 (0.801–0.807) | 53 % (53–53) | 97 % (96–97) | 0.020 (0.015–0.025) | "
    "46 % (43–49) | 5 % (−2 to 12) | 0.143 (0.139–0.148) | 2 262 (2 075–2 449) | 17 (8–26) |",
    "timesteps.same_photo_rate": "| Direct-Align | 0.52 |",
    "anchor.against_rivals": "| at photo rate ",
    "coverage.power": "| 480 prompts | ",
    "early_stopping.summary": "| anchored, max_degradation and metric | 120 | 70 | 100 % (99–100) | 99 % (98–100) | 0.028 (0.012–0.044) |",
}


def recorded(name: str) -> Rows:
    return read_rows(RECORDS / f"{name}.jsonl")


@pytest.mark.parametrize("name", STUDIES)
def test_a_recorded_study_gives_tables_and_figures(name: str, tmp_path: Path) -> None:
    study, rows = load_study(name), recorded(name)
    tables = study.tables(rows)
    assert tables and all(table.rows for table in tables.values())
    for key, line in PINNED.items():
        if key.startswith(f"{name}."):
            assert line in tables[key.partition(".")[2]].markdown()
    files = study.draw(rows, tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert all(file.stem == name or file.stem.startswith(f"{name}_") for file in files)
    shipped = {file.name for file in (ROOT / "docs/img/studies").glob(f"{name}*.png")}
    assert {file.name for file in files} == shipped


def test_every_study_is_recorded_and_no_other() -> None:
    assert {file.stem for file in RECORDS.iterdir()} == set(STUDIES)
    with pytest.raises(
        DirectAlignError, match="no study is called tabel1; there are learning_rates, table1"
    ):
        load_study("tabel1")


def test_methods_are_compared_under_the_rates_that_the_recorded_study_chose() -> None:
    rates = {name: rate for name, (_, rate) in METHODS.items()}
    assert learning_rates.chosen(recorded("learning_rates")) == rates
