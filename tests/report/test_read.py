"""Reading run folders: everything that is there, and a note for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import write_demo, write_run

from directalign.report.format import number
from directalign.report.read import read_run, run_folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_whole_run(folder: Path):
    run = read_run(folder)
    assert (run.name, len(run.steps), [record["step"] for record in run.measured]) == (
        "SRPO",
        20,
        [0, 5, 10, 15, 20],
    )
    assert run.curve("grad_norm")[0] == (1.0, pytest.approx(0.06)) and run.measured_curve(
        "photo_rate"
    )[-1][1] == pytest.approx(0.9)
    assert run.band("photo_rate")[0] == (0.0, pytest.approx(0.15), pytest.approx(0.24))
    assert [step for step, _ in run.samples] == [0, 5, 10, 15, 20] and not run.notes
    assert (
        run.setting("method", "form") == "anchored"
        and run.setting("method", "form", "deeper", default=7) == 7
    )


def test_a_half_written_last_line_is_noted(folder: Path):
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"event": "step", "step": 21, "lo')
    run = read_run(folder)
    assert len(run.steps) == 20 and run.notes == [
        "metrics.jsonl, line 26: truncated or not JSON, left out."
    ]


def test_missing_files_are_noted(folder: Path):
    for name in ("run.yaml", "summary.json"):
        (folder / name).unlink()
    for file in (folder / "samples").iterdir():
        file.unlink()
    run = read_run(folder)
    assert len(run.notes) == 3 and run.name == "run" and len(run.steps) == 20


def test_broken_files_are_noted(folder: Path):
    (folder / "run.yaml").write_text("name: [unclosed")
    (folder / "summary.json").write_text('{"align_sec')
    (folder / "metrics.jsonl").write_text(
        '[1, 2]\n{"event": "step"}\n'
        '{"event": "step", "step": 1, "loss": null, "levels": {"denoise": 3}}\n'
    )
    run = read_run(folder)
    assert (
        len(run.notes) == 4
        and len(run.steps) == 1
        and run.curve("loss") == []
        and run.levels() == {}
    )


def test_levels_are_means_weighted_by_samples(folder: Path):
    lines = [
        '{"event": "step", "step": 1, "levels": {"denoise": [{"sigma": 0.81, "n": 1, "gain": 0.1}]'
        "}}",
        '{"event": "step", "step": 2, "levels": {"denoise": [{"sigma": 0.84, "n": 3, "gain": 0.5}, '
        '{"sigma": 0.61, "n": 1, "gain": 0.2}]}}',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    low, high = read_run(folder).levels()["denoise"]
    assert (
        low["gain"] == 0.2
        and high["n"] == 4
        and high["gain"] == pytest.approx(0.4)
        and high["sigma"] == pytest.approx(0.8325)
    )


def test_a_step_measured_twice_counts_once(folder: Path):
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text + text.splitlines()[-1] + "\n")
    assert len(read_run(folder).measured) == 5


def test_order_of_runs(tmp_path: Path):
    (write_demo(tmp_path / "demo") / "unrelated").mkdir()
    write_run(tmp_path / "demo" / "another")
    assert [path.name for path in run_folders(tmp_path / "demo")] == [
        "srpo",
        "direct_align",
        "another",
        "srpo_long",
        "official_long",
    ]


def test_numbers_are_finite_numbers():
    assert [
        number(value)
        for value in (1, {"value": 0.5}, True, "3", None, float("nan"), float("inf"), {})
    ] == [1.0, 0.5, *[None] * 6]
