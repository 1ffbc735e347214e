"""Some studies from end to end in their quick size: rows, tables, figures; called again, nothing is measured anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from directalign.config.load import RECIPES
from experiments.__main__ import app
from experiments.rows import Rows, read_rows
from experiments.runner import load_study

KINDS = {
    "convergence": {None, "depth", "state"},
    "timesteps": {None, "hacking"},
    "soft_prompts": {None, "fit"},
    "reward_finetuning": {None, "reward"},
    "recovery": {None},
    "early_stopping": {None, "ending"},
    "coverage": {"wins", "judge", "coverage", "test", "power", "votes", "votes test"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def study(name: str, folder: Path, *words: str) -> tuple[Rows, dict[Path, int]]:
    """Rows of a study, and when its measurements were written."""
    out = folder / f"study_{name}"
    given = [name, "--out", str(out), "--recipes", str(RECIPES), *words]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(out / "README.md")
    kept = [*out.rglob("metrics.jsonl"), *out.rglob("pieces/*"), *out.rglob("prices.json")]
    return read_rows(out / "results.jsonl"), {file: file.stat().st_mtime_ns for file in kept}


@pytest.mark.parametrize("name", KINDS)
def test_a_study_in_its_quick_size(name: str, folder: Path) -> None:
    rows, kept = study(name, folder, "--quick")
    page = (folder / f"study_{name}" / "README.md").read_text(encoding="utf-8")
    assert {row.get("kind") for row in rows} == KINDS[name]
    assert "> Quick size" in page and all(
        f"## {table}\n" in page for table in load_study(name).tables(rows)
    )
    assert study(name, folder, "--quick") == (rows, kept), "called again it measures nothing"


def test_the_full_size_is_not_mixed_with_the_quick_one(folder: Path) -> None:
    study("recovery", folder, "--quick")
    result = CliRunner().invoke(
        app, ["recovery", "--out", str(folder / "study_recovery"), "--recipes", str(RECIPES)]
    )
    assert (
        result.exit_code == 1
        and "holds the quick size of study recovery, not the full size" in result.output
    )


def test_the_measured_ratio_of_errors_is_the_predicted_one(folder: Path) -> None:
    rows, _ = study("recovery", folder, "--quick")
    recovered = rows.where(image="recovered")
    assert {row["arm"] for row in recovered} == {"flux", "sd", "sd_v"} and any(
        row["jump"] < 0 for row in recovered
    )
    for row in recovered:
        (guess,) = rows.where(
            image="x0_hat", **{key: row[key] for key in ("arm", "noise", "sigma")}
        )
        assert row["ratio"] == pytest.approx(row["predicted"], rel=1e-3), row
        assert row["latents_rmse"] == pytest.approx(
            row["predicted"] * guess["latents_rmse"], rel=1e-3
        )


def test_shares_of_the_most_hacked_windows_add_up(folder: Path) -> None:
    rows, _ = study("timesteps", folder, "--quick")
    assert sum(row["share"] for row in rows.where(kind="hacking")) == pytest.approx(1)
