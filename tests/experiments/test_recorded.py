"""Recorded studies give tables and figures; comparisons use what the recorded studies chose."""

from pathlib import Path

import pytest

from directalign.types import DirectAlignError
from experiments import learning_rates
from experiments.rows import read_rows
from experiments.runner import RATES, STUDIES, load_study

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks/results/studies"


@pytest.mark.parametrize("name", STUDIES)
def test_a_recorded_study_gives_tables_and_figures(name, tmp_path):
    study, rows = load_study(name), read_rows(RECORDS / f"{name}.jsonl")
    tables = study.tables(rows)
    assert tables and all(table.rows for table in tables.values())
    files = study.draw(rows, tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert all(file.stem == name or file.stem.startswith(f"{name}_") for file in files)
    shipped = {file.name for file in (ROOT / "docs/img/studies").glob(f"{name}*.png")}
    assert {file.name for file in files} == shipped


def test_every_study_is_recorded_and_no_other():
    assert {file.stem for file in RECORDS.iterdir()} == set(STUDIES)
    message = "no study is called tabel1; there are learning_rates, asking"
    with pytest.raises(DirectAlignError, match=message):
        load_study("tabel1")


def test_methods_are_compared_under_the_rates_that_the_recorded_study_chose():
    assert learning_rates.chosen(read_rows(RECORDS / "learning_rates.jsonl")) == RATES
