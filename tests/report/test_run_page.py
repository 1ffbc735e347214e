"""A run that stopped early: the sentence, the marks on its charts, the grid of the kept weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from page_tags import HOSTILE, Tags
from synthetic_run import stop_run, write_demo, write_run

from directalign.report import write_page
from directalign.report.read import read_run
from directalign.report.run_page import changes, ending, run_scatters
from directalign.report.runs_page import runs_scatters


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    return stop_run(write_run(tmp_path / "run"))


def test_a_run_that_went_to_its_end_has_no_ending(tmp_path: Path):
    assert ending(read_run(write_run(tmp_path / "run"))) is None


def test_the_sentence(stopped: Path):
    found = ending(read_run(stopped))
    assert found and (found.stop, found.kept) == (15, 10)
    assert found.sentences() == [
        "The run stopped early after update 15: colour drift spent its budget.",
        "The exported weights are those of update 10.",
    ]
    html = write_page(stopped).read_text()
    assert all(sentence in html for sentence in found.sentences())


def test_every_curve_is_marked(stopped: Path):
    html = write_page(stopped).read_text()
    curves = re.findall(r'<svg class="chart".*?</svg>', html)
    over_updates = [curve for curve in curves if " by update</title>" in curve]
    assert len(over_updates) == 7 and all(
        curve.count('<line class="rule') == 2 for curve in over_updates
    )


def test_the_summary_alone_tells_it_too(stopped: Path):
    records = [
        line
        for line in (stopped / "metrics.jsonl").read_text().splitlines()
        if '"stop"' not in line and '"kept"' not in line
    ]
    (stopped / "metrics.jsonl").write_text("\n".join(records))
    told = {"stopped": {"step": 15, "reason": "patience", "kept": 10}, "kept": {"step": 10}}
    (stopped / "summary.json").write_text(json.dumps(told))
    found = ending(read_run(stopped))
    assert (
        found
        and found.sentences()[0]
        == "The run stopped early after update 15: the judge found no further improvement."
    )


def test_a_run_that_kept_earlier_weights_without_stopping(stopped: Path):
    records = [
        line
        for line in (stopped / "metrics.jsonl").read_text().splitlines()
        if '"event": "stop"' not in line
    ]
    (stopped / "metrics.jsonl").write_text("\n".join(records))
    found = ending(read_run(stopped))
    assert found and found.stop is None and "not stopped early" in found.sentences()[0]


def test_after_is_what_is_kept(stopped: Path):
    photo = changes(read_run(stopped))[0]
    assert photo.key == "photo_rate" and photo.after["value"] == pytest.approx(0.55)


def test_the_plane_of_a_limited_number(stopped: Path):
    (plane,) = run_scatters(read_run(stopped))
    assert (plane.x.name, plane.y.name, plane.limited) == ("photo_rate", "color_drift", True)
    for chart in plane.charts.values():
        assert (
            "kept: update 10" in chart
            and "stopped: update 15" in chart
            and ">limit<" in chart
            and 'class="marker kept"' in chart
        )


def test_stop_and_kept_at_one_update(tmp_path: Path):
    run = read_run(stop_run(write_run(tmp_path / "run"), stop=15, kept=15))
    assert [mark.text for mark in ending(run).rules()] == ["stop, kept"]  # type: ignore[union-attr]
    assert "stopped and kept: update 15" in run_scatters(run)[0].charts["wide"]


def test_the_plane_of_runs_marks_each(tmp_path: Path):
    demo = write_demo(tmp_path / "demo")
    stop_run(demo / "srpo_long")
    runs = [read_run(demo / name) for name in ("srpo", "srpo_long")]
    (plane,) = runs_scatters(runs)
    assert (
        plane.charts["wide"].count('class="marker s2"') == 2
        and 'class="marker s0"' not in plane.charts["wide"]
    )


def test_without_the_worlds_judge_a_held_out_reward_judges(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    text = (
        (folder / "metrics.jsonl")
        .read_text()
        .replace('"photo_rate"', '"held_out_second"')
        .replace('"content"', '"held_out_second_pos"')
    )
    (folder / "metrics.jsonl").write_text(text)
    run = read_run(folder)
    assert [plane.x.name for plane in run_scatters(run)] == ["held_out_second"]
    assert changes(run)[0].title == "Held out: second"


def test_the_kept_grid_is_shown_first(stopped: Path):
    tags = Tags(write_page(stopped).read_text())
    shown = {
        attrs["alt"]
        for tag, attrs in tags.found
        if tag == "img" and attrs.get("class") == "after on"
    }
    assert shown == {"After 10 updates"}


def test_a_hostile_reason(tmp_path: Path):
    html = write_page(stop_run(write_run(tmp_path / "run"), says=HOSTILE)).read_text()
    assert Tags(html).harmless() and "onerror=alert(1)&gt;" in html


@pytest.mark.parametrize(
    "record",
    [
        '{"event": "stop", "step": 15}',
        '{"event": "stop", "step": 15, "says": 3, "kept": "x"}',
        '{"event": "kept", "step": 99}',
    ],
)
def test_records_that_say_little(tmp_path: Path, record: str):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(record + "\n")
    assert "After" in write_page(folder).read_text()
