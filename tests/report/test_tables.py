"""Tables and charts of the pages: settings that differ, groups of prompts, curves of all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_run import write_demo, write_run

from comparison_folders import write_comparison
from directalign.metrics import ROLES
from directalign.report import write_page
from directalign.report.charts import line_styles
from directalign.report.comparison_page import group_tables
from directalign.report.page import ABSENT, differing_settings, flat
from directalign.report.read import read_comparison, read_run, recorded_metric
from directalign.report.run_page import curve_groups
from directalign.report.runs_page import curves_together


def test_settings_that_differ_are_the_only_rows():
    one: dict[str, Any] = {
        "name": "A",
        "seed": 0,
        "train": {"learning_rate": 1e-4, "betas": [0.9, 0.999]},
        "early_stopping": None,
    }
    two: dict[str, Any] = {
        "name": "B",
        "seed": 0,
        "train": {"learning_rate": 3e-5, "betas": [0.9, 0.999]},
        "early_stopping": {"max_degradation": {"content": 0.03}},
    }
    assert flat(two)["early_stopping.max_degradation.content"] == 0.03
    assert differing_settings([one, None, two]) == [
        ("train.learning_rate", ["0.0001", ABSENT, "3e-05"]),
        ("early_stopping.max_degradation.content", [ABSENT, ABSENT, "0.03"]),
    ]
    assert (
        differing_settings([one, one]) == []
        and differing_settings([None, one]) == []
        and differing_settings([]) == []
    )


def test_settings_that_are_flat_already_stay_so():
    assert differing_settings([{"a.b": 1}, {"a.b": 2}]) == [("a.b", ["1", "2"])]


def test_a_base_model_has_no_say_in_how_others_are_trained():
    base = {"rollout.shift": 1.0}
    one, two = (
        {"rollout.shift": 3.0, "train.clip": 0.1, "method.form": form}
        for form in ("relative", "anchored")
    )
    assert differing_settings([base, one, two]) == [
        ("rollout.shift", ["1", "3", "3"]),
        ("method.form", [ABSENT, "relative", "anchored"]),
    ]


def test_records_are_believed_over_the_registry():
    told = recorded_metric(
        "score_x",
        {"role": "held_out", "better": 1, "label": "X", "scale": "Share of images, 0 to 1."},
    )
    assert (told.role, told.better, told.label, told.percent) == ("held_out", 1, "X", True)
    odd = recorded_metric(
        "score_x", {"role": "nonsense", "better": 7, "label": ["a"], "scale": None}
    )
    assert odd.role in ROLES and odd.better in (-1, 0, 1)


def test_curves_are_grouped_by_role(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    more = (
        '"held_out_second": 0.5, "held_out_second_pos": 0.6, "off_topic_reward": 0.4, '
        '"diversity": 0.1, "something_new": 3, "each": {"x": [1]}, "color_drift"'
    )
    (folder / "metrics.jsonl").write_text(text.replace('"color_drift"', more))
    found = {
        group.role: [figure.title for figure in group.figures]
        for group in curve_groups(read_run(folder))
    }
    assert found["held_out"] == ["Held out: second"] and found["leakage"] == ["Reward off topic"]
    assert found["drift"] == ["Diversity", "Something new", "Colour drift"] and found["judge"] == [
        "Photo rate",
        "Content",
    ]
    assert "trained on" in write_page(folder).read_text()


def test_too_many_numbers_are_counted(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    extra = ", ".join(f'"number_{place}": 1' for place in range(100))
    (folder / "metrics.jsonl").write_text(
        (folder / "metrics.jsonl").read_text().replace('"color_drift"', f'{extra}, "color_drift"')
    )
    assert "of 104 metrics are not drawn" in write_page(folder).read_text()


def test_by_group_needs_two_groups(tmp_path: Path):
    comparison = read_comparison(write_comparison(tmp_path / "out"))
    photo = next(table for table in group_tables(comparison) if table.metric.name == "photo_rate")
    rows = {group: (pairs, cells) for group, pairs, cells in photo.rows}
    assert set(rows) == {"without a group", "animation"} and rows["animation"][0] == "16 pairs"
    values = [
        image.numbers["photo_rate"]
        for image in comparison.images["srpo"].values()
        if image.group == "animation"
    ]
    assert (
        rows["animation"][1][2][0] == f"{100 * sum(values) / 16:.0f}\u00a0%"
        and rows["animation"][1][0][2] == ""
    )
    assert (
        group_tables(
            read_comparison(
                write_comparison(tmp_path / "one", prompts=["a red circle"], control_prompts=0)
            )
        )
        == []
    )


def test_runs_are_drawn_together(tmp_path: Path):
    runs = [
        read_run(folder)
        for folder in sorted(write_demo(tmp_path / "demo").iterdir())
        if folder.is_dir()
    ]
    found = {figure.title: figure.chart for figure in curves_together(runs)}
    assert list(found) == ["Photo rate", "Content", "Reward of whole images", "Colour drift"]
    assert all(chart.count("<polyline") == 4 for chart in found.values())
    assert curves_together(runs[:1]) == [] and len(set(line_styles(7))) == 7


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_runs(tmp_path: Path, count: int):
    for place in range(count):
        write_run(tmp_path / "runs" / f"run{place:02d}", f"Run {place}", num_steps=5)
    html = write_page(tmp_path / "runs").read_text()
    assert ("4 of 12 runs are only in the table" in html) == (count == 12) and len(html) < 5_000_000
