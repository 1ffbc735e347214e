"""Reading run folders: everything that is there, and a note for what is not."""

import json

import pytest

from directalign.report.read import read_run, run_folders
from directalign.report.run_page import changes
from directalign.report.runs_page import table
from synthetic_run import write_demo, write_run


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
    assert len(run.notes) == 2 and run.name == "run" and len(run.steps) == 20


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
    assert names == ["srpo", "another", "direct_align", "official_long", "srpo_long"]


def test_curves_and_headlines_compare_equal_samples(tmp_path):
    """A run is evaluated on 256 samples at its ends and on 128 of them in between."""

    def rate(value, n):
        return {"value": value, "low": value, "high": value, "n": n}

    ends = [rate(0.1, 256), rate(0.9, 256)]
    records = [
        {"photo_rate": ends[0], "color_drift": 0.032, "during": {"photo_rate": rate(0.2, 128)}},
        {"photo_rate": rate(0.5, 128), "color_drift": 0.022},
        {"photo_rate": ends[1], "color_drift": 0.035, "during": {"photo_rate": rate(0.8, 128)}},
    ]
    records[0]["during"]["color_drift"], records[2]["during"]["color_drift"] = 0.021, 0.023
    lines = [{"event": "evaluate", "step": 10 * n, **each} for n, each in enumerate(records)]
    for count, headline in ((3, (0.1, 0.9)), (2, (0.2, 0.5))):  # finished, interrupted
        file = tmp_path / "metrics.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in lines[:count]))
        run = read_run(tmp_path)
        drifts = [value for _, value in run.measured_curve("color_drift")]
        assert drifts == [0.021, 0.022, 0.023][:count] and run.num_samples == "n = 128"
        found = changes(run)[0]
        assert (found["before"]["value"], found["after"]["value"]) == headline
        ((_, ends),) = table([run])
        rows = [numbers["photo_rate"]["value"] for numbers in ends or ()]
        assert tuple(rows) == headline, "one number of samples in all rows"


def test_without_a_judge_the_number_of_samples_is_the_recipes(tmp_path):
    recipe = "evaluate: {num_samples: 256, num_samples_during: 64, every: %d}\n"
    during = {"event": "evaluate", "step": 5, "reward": 0.6}
    ends = [{"event": "evaluate", "step": step, "reward": 0.5} for step in (0, 9)]
    partial = [{**each, "during": {"reward": 0.4}} for each in ends]
    for every, records, expected in ((5, [*partial, during], "n = 64"), (0, ends, "n = 256")):
        (tmp_path / "run.yaml").write_text(recipe % every)
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "metrics.jsonl").write_text(text)
        run = read_run(tmp_path)
        assert run.num_samples == expected
        assert next(iter(run.ends)) == 256, "before and after are of all samples"


def test_an_evaluation_on_other_samples_is_in_no_curve(folder):
    with (folder / "metrics.jsonl").open("a") as stream:
        odd = {"value": 1.0, "low": 0.9, "high": 1.0, "n": 32}
        stream.write(json.dumps({"event": "evaluate", "step": 21, "photo_rate": odd}) + "\n")
    run = read_run(folder)
    assert (len(run.measured), len(run.measured_curve("photo_rate"))) == (6, 5)
    assert changes(run) == [] and "1 of 6 evaluations are on other samples" in run.notes[-1]
