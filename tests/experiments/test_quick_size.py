"""Some studies end to end in quick size: rows, tables, figures; a second call measures nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments import frontier
from experiments.__main__ import app
from experiments.rows import Rows, read_rows
from experiments.runner import load_study

KINDS = {
    "convergence": {None, "depth", "state"},
    "frontier": {None, "price", "search"},
    "timesteps": {None, "hacking"},
    "reward_finetuning": {None, "reward"},
    "recovery": {None},
    "taste": {"round"},
    "few_step": {None, "reference", "sampled"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def study(name: str, folder: Path) -> tuple[Rows, dict[Path, int]]:
    """Rows of a study, and when its measurements were written."""
    out = folder / f"study_{name}"
    result = CliRunner().invoke(app, [name, "--out", str(out), "--quick"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(out / "README.md")
    kept = [*out.rglob("metrics.jsonl"), *out.rglob("pieces/*"), *out.rglob("prices.json")]
    return read_rows(out / "results.jsonl"), {file: file.stat().st_mtime_ns for file in kept}


@pytest.mark.parametrize("name", KINDS)
def test_a_study_in_its_quick_size(name, folder):
    rows, kept = study(name, folder)
    page = (folder / f"study_{name}" / "README.md").read_text(encoding="utf-8")
    assert {row.get("kind") for row in rows} == KINDS[name]
    assert "> Quick size" in page
    assert all(f"## {table}\n" in page for table in load_study(name).tables(rows))
    if name == "timesteps":  # a second call measures nothing
        assert study(name, folder) == (rows, kept)
    if name == "recovery":
        _check_ratios(rows)
        result = CliRunner().invoke(app, [name, "--out", str(folder / f"study_{name}")])
        assert result.exit_code == 1
        assert "holds the quick size of study recovery, not the full size" in result.output
    if name == "frontier":  # two steps of each image that is made before the first update
        rows = [row for row in rows if row["arm"] == "half_off_policy" and "step" in row]
        assert min(row["call_equivalents"] for row in rows) == 2 * frontier.MADE
    if name == "timesteps":
        assert sum(row["share"] for row in rows.where(kind="hacking")) == pytest.approx(1)


def _check_ratios(rows: Rows) -> None:
    """The measured ratio of errors is the predicted one."""
    recovered = rows.where(image="recovered")
    assert {row["arm"] for row in recovered} == {"flux", "sd", "sd_v"}
    assert any(row["jump"] < 0 for row in recovered)
    for row in recovered:
        at = {key: row[key] for key in ("arm", "noise", "sigma")}
        (guess,) = rows.where(image="x0_hat", **at)
        assert row["ratio"] == pytest.approx(row["predicted"], rel=1e-3), row
        error = row["predicted"] * guess["latents_rmse"]
        assert row["latents_rmse"] == pytest.approx(error, rel=1e-3)
