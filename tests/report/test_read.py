"""Reading run folders: everything that is there, and a note for what is not."""

from __future__ import annotations

import pytest
from synthetic_run import write_demo, write_run

from directalign.report.read import read_run, run_folders


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run")


def test_a_complete_run(folder):
    run = read_run(folder)
    steps = [record["step"] for record in run.measured]
    assert (run.name, len(run.steps), steps) == ("SRPO", 20, [0, 5, 10, 15, 20])
    assert run.curve("grad_norm")[0] == (1.0, pytest.approx(0.06))
    assert run.measured_curve("photo_rate")[-1][1] == pytest.approx(0.9)
    assert run.band("photo_rate")[0] == (0.0, pytest.approx(0.15), pytest.approx(0.24))
    assert [step for step, _ in run.samples] == steps and not run.notes
    assert run.setting("method", "form") == "anchored"
    assert run.setting("method", "form", "deeper", default=7) == 7


def test_a_step_evaluated_twice_counts_once_and_a_partial_last_line_is_noted(folder):
    with (folder / "metrics.jsonl").open("a+") as stream:
        stream.seek(0)
        last = stream.read().splitlines()[-1]
        stream.write(last + '\n{"event": "step", "step": 21, "lo')
    run = read_run(folder)
    assert (len(run.steps), len(run.measured)) == (20, 5)
    assert run.notes == ["metrics.jsonl, line 27: truncated or not JSON, left out."]


def test_missing_files_are_noted(folder):
    for file in (folder / "run.yaml", folder / "summary.json", *(folder / "samples").iterdir()):
        file.unlink()
    run = read_run(folder)
    assert len(run.notes) == 3 and run.name == "run" and len(run.steps) == 20


def test_broken_files_are_noted(folder):
    (folder / "run.yaml").write_text("name: [unclosed")
    (folder / "summary.json").write_text('{"align_sec')
    line = '{"event": "step", "step": 1, "loss": null, "levels": {"denoise": 3}}'
    (folder / "metrics.jsonl").write_text(f'[1, 2]\n{{"event": "step"}}\n{line}\n')
    run = read_run(folder)
    assert len(run.notes) == 4 and len(run.steps) == 1
    assert run.curve("loss") == [] and run.levels() == {}


def test_levels_are_means_weighted_by_samples(folder):
    entries = [
        '{"sigma": 0.81, "n": 1, "gain": 0.1}',
        '{"sigma": 0.84, "n": 3, "gain": 0.5}, {"sigma": 0.61, "n": 1, "gain": 0.2}',
    ]
    lines = [
        f'{{"event": "step", "step": {step}, "levels": {{"denoise": [{each}]}}}}'
        for step, each in enumerate(entries)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    low, high = read_run(folder).levels()["denoise"]
    assert low["gain"] == 0.2
    assert high == pytest.approx({"n": 4, "gain": 0.4, "sigma": 0.8325})


def test_order_of_runs(tmp_path):
    (write_demo(tmp_path / "demo") / "unrelated").mkdir()
    write_run(tmp_path / "demo" / "another")
    names = [path.name for path in run_folders(tmp_path / "demo")]
    assert names == ["srpo", "direct_align", "another", "srpo_long", "official_long"]
