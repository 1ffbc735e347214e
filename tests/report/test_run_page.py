"""The page of a run: curves by role, the early stop, the marks on charts, the exported weights."""

import json
import shutil
from pathlib import Path

import pytest
from page_tags import HOSTILE, Tags

from comparison_folders import write_comparison
from directalign.report import write_page
from directalign.report.read import read_run
from directalign.report.run_page import changes, curve_groups, ending, reward_of, run_scatters
from directalign.report.runs_page import runs_scatters
from synthetic_run import stop_run, write_run


@pytest.fixture
def copy(run_folder, tmp_path):
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def replace_text(folder: Path, *pairs: tuple[str, str]) -> Path:
    text = (folder / "metrics.jsonl").read_text()
    for old, new in pairs:
        text = text.replace(old, new)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_the_end_of_a_run_is_described(run_folder, stopped):
    assert ending(read_run(run_folder)) is None
    found = ending(read_run(stopped))
    assert found and (found.stop, found.kept) == (15, 10)
    stop = "The run stopped early after update 15: colour drift spent its budget."
    weights = "The exported weights are those of update 10."
    assert f"<strong>{stop}</strong> {weights}</p>" in write_page(stopped).read_text()
    photo = changes(read_run(stopped))[0]
    assert photo["key"] == "photo_rate" and photo["after"]["value"] == pytest.approx(0.55)


@pytest.mark.parametrize("source", ["summary", "kept only"])
def test_other_records_of_the_end(stopped, tmp_path, source):
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    events = ("stop", "kept") if source == "summary" else ("stop",)
    left = [line for line in lines if json.loads(line)["event"] not in events]
    (folder / "metrics.jsonl").write_text("\n".join(left))
    if source == "summary":
        record = {"stopped": {"step": 15, "reason": "patience", "kept": 10}, "kept": {"step": 10}}
        (folder / "summary.json").write_text(json.dumps(record))
    assert (
        "The run stopped early after update 15: the judge found no further improvement."
        if source == "summary"
        else "The run was not stopped early."
    ) in write_page(folder).read_text()


def test_the_path_of_a_limited_metric(stopped, run_folder, tmp_path):
    (plane,) = run_scatters(read_run(stopped))
    assert (plane.x.name, plane.y.name, plane.limited) == ("photo_rate", "color_drift", True)
    marks = ("kept: update 10", "stopped: update 15", ">limit<", 'class="marker kept"')
    for chart in plane.charts.values():
        assert all(mark in chart for mark in marks)
    other = shutil.copytree(stopped, tmp_path / "other")
    runs = [read_run(run_folder), read_run(other)]
    ((_, plane),) = runs_scatters(runs, {"run": "s0", "other": "s2"})
    wide = plane.charts["wide"]
    assert wide.count('class="marker s2"') == 2 and 'class="marker s0"' not in wide
    run = read_run(stop_run(write_run(tmp_path / "run"), stop=15, kept=15))
    assert [mark.text for mark in ending(run).rules()] == ["stop, kept"]  # type: ignore[union-attr]
    assert "stopped and kept: update 15" in run_scatters(run)[0].charts["wide"]


def test_a_held_out_reward_judges_without_the_judge_of_the_toy_world(copy):
    renamed = ('"photo_rate"', '"held_out_second"'), ('"content"', '"held_out_second_pos"')
    run = read_run(replace_text(copy, *renamed))
    assert [plane.x.name for plane in run_scatters(run)] == ["held_out_second"]
    assert changes(run)[0]["title"] == "Held out: second"


def test_curves_are_grouped_by_role(copy):
    more = (
        '"held_out_second": 0.5, "held_out_second_pos": 0.6, "off_topic_reward": 0.4, '
        '"diversity": 0.1, "something_new": 3, "each": {"x": [1]}, "color_drift"'
    )
    groups = curve_groups(read_run(replace_text(copy, ('"color_drift"', more))))
    found = {role: [each.title for each in figures] for role, *_, figures in groups}
    assert found.pop("trained")[0] == "Reward of whole images"
    assert found == {
        "judge": ["Photo rate", "Content"],
        "held_out": ["Held out: second"],
        "drift": ["Diversity", "Something new", "Colour drift"],
        "leakage": ["Reward off topic"],
    }


def test_a_mixture_has_charts_of_its_members(copy):
    members = '"metrics": {"share_a": 0.2, "reward_a": 1.0}, "grad_norm"'
    styles = '"style_cg": 0.2, "color_drift"'
    run = read_run(replace_text(copy, ('"grad_norm"', members), ('"color_drift"', styles)))
    titles = [figure.title for *_, figures in curve_groups(run) for figure in figures]
    assert {"Shares in the reward", "a in training", "Styles"} <= set(titles)
    member = {"label": "a", "weight": -0.5, "reward": {"name": "clip", "path": "x"}}
    words = reward_of({"name": "mix", "members": [member]})
    assert words == "mix of a (clip x, weight −0.5)"


@pytest.mark.parametrize(
    "record",
    [
        {"event": "stop", "step": 15},
        {"event": "stop", "step": 15, "says": 3, "kept": "x"},
        {"event": "stop", "step": 15, "says": HOSTILE},
        {"event": "kept", "step": 99},
    ],
)
def test_incomplete_and_hostile_records(copy, record):
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    html = write_page(copy).read_text()
    assert "After" in html and Tags(html).harmless()
    assert ("onerror=alert(1)&gt;" in html) == (record.get("says") == HOSTILE)


def test_best_and_worst_prompts_of_an_evaluated_run(copy):
    assert "Best and worst prompts" not in write_page(copy).read_text()
    write_comparison(copy / "evaluation", {"base": "Base model", "tuned": "Tuned"})
    (copy / "evaluation" / "images" / "tuned" / "00000.png").write_bytes(b"torn")
    html = write_page(copy).read_text()
    assert all(text in html for text in ("Best and worst prompts", "Better on", "Gained most"))
