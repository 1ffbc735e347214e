"""Pages of synthetic runs: complete, self-contained, escaped; missing files are listed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_tags import HOSTILE, LIMIT, Tags

from directalign.report import NothingToReport, write_page
from directalign.report.basis import on_equal_pairs
from directalign.report.read import read_run
from directalign.report.runs_page import columns_of, curves_of_runs, matched, styles_of, table
from synthetic_run import PROMPTS, write_run


@pytest.fixture
def demo(demo_folder, tmp_path):
    return Path(shutil.copytree(demo_folder, tmp_path / "demo"))


def page_of(folder: Path) -> str:
    return write_page(folder).read_text(encoding="utf-8")


def test_one_run(tmp_path):
    file = write_page(write_run(tmp_path / "run"))
    html = file.read_text()
    tags = Tags(html)
    assert file.name == "report.html" and len(html) < LIMIT and tags.harmless()
    assert tags.count("img") == 8 * 5 and all(prompt in html for prompt in PROMPTS)
    assert "20\u00a0% →</span> 90\u00a0%" in html and "on the same 256 pairs" in html
    assert f"directalign train {tmp_path}/run/run.yaml" in html
    assert tags.count("figure") == 8 + 7 + 3 + 2 and "<h2>Notes</h2>" not in html


def test_runs_side_by_side(demo):
    html = page_of(demo)
    tags = Tags(html)
    assert len(html) < LIMIT and tags.harmless()
    assert (tags.count("tr"), tags.count("img")) == (1 + 4 + 3 + 2, 3 * 8 + 2 * 7 * 3)
    assert "Longer training" in html and "Official ramps, three times longer" in html
    assert "At a photo rate of 45\u00a0%, which both reached" in html
    assert "9.8 times as much" in html and "4 runs of one base model" in html
    assert 'href="srpo/report.html"' not in html
    write_page(demo / "srpo")
    assert 'href="srpo/report.html"' in page_of(demo)


def change(folder: Path, **sections: Any) -> None:
    """Other values in a run's recipe."""
    recipe = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump({**recipe, **sections}))


def test_only_runs_on_equal_pairs_and_rewards_share_a_table_and_a_chart(tmp_path):
    """Of five runs one has other prompts, one fewer samples, and one another reward."""
    for name in ("a", "b", "prompts", "few", "reward"):
        write_run(tmp_path / name, name)
    change(tmp_path / "prompts", data={"prompts": "mine.txt"})
    change(tmp_path / "reward", reward={"name": "clip", "path": "other"})
    records = (tmp_path / "few" / "metrics.jsonl").read_text()
    (tmp_path / "few" / "metrics.jsonl").write_text(records.replace('"n": 256', '"n": 32'))
    runs = [read_run(path) for path in sorted(tmp_path.iterdir())]
    groups = [[run.key for run in group] for group in on_equal_pairs(runs)]
    assert groups == [["a", "b", "reward"], ["few"], ["prompts"]]
    same = [run for run in runs if run.key in groups[0]]
    assert [title for title, _ in columns_of(same)[1]] == ["Reward"]
    assert {end["photo_rate"]["n"] for _, ends in table(same) for end in ends or ()} == {256}
    styles = styles_of(runs)
    charts = {each.title: each.chart for each in curves_of_runs(runs, styles)[0]}
    drawn = {title: chart.count("<polyline") for title, chart in charts.items()}
    assert drawn == {"Photo rate": 3, "Content": 3, "Reward of whole images": 2, "Colour drift": 3}
    assert matched([runs[0], runs[2]]) is None and matched([runs[0], runs[1]]) is not None
    html = page_of(tmp_path)
    assert "Measured on 256 pairs from world" in html and "on the same 32 pairs" in html
    assert "Measured on 256 pairs from mine.txt" in html
    assert "Reward is left out: these runs were measured with different rewards." in html


def test_runs_share_a_table_by_the_prompts_that_they_are_measured_on(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, name)
    change(tmp_path / "a", data={"prompts": "mine.txt"})
    change(tmp_path / "b", evaluate={"prompts": "mine.txt"})
    runs = [read_run(tmp_path / name) for name in ("a", "b", "c")]
    assert [[run.key for run in group] for group in on_equal_pairs(runs)] == [["a", "b"], ["c"]]


def test_hostile_text_stays_text(run_folder, demo, tmp_path):
    expected = Tags(page_of(run_folder))
    folder = write_run(tmp_path / "run", name=HOSTILE)
    (folder / "samples" / "samples.json").write_text(json.dumps({"prompts": [HOSTILE] * 8}))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "commit": HOSTILE}))
    tags = Tags(page_of(folder))
    assert [tag for tag, _ in tags.found] == [tag for tag, _ in expected.found]
    (demo / "srpo" / "run.yaml").write_text(json.dumps({"name": HOSTILE}))
    assert tags.harmless() and Tags(page_of(demo)).harmless()


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 0.5}\n{"event": "st'
    )
    html = page_of(tmp_path)
    assert "Not evaluated before and after" in html and "<h2>Notes</h2>" in html
    missing = ("run.yaml: No such file", "No sample grids")
    for note in (*missing, "line 2: truncated"):
        assert note in html


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NothingToReport, match="holds no run"):
            write_page(folder)


def test_runs_are_matched_at_one_photo_rate(demo):
    found = matched([read_run(demo / "srpo"), read_run(demo / "direct_align")])
    assert found and found.photo_rate == pytest.approx(0.45)
    (_, drift, _, step), (_, other, _, last) = found.rows
    assert step == pytest.approx(20 * 0.25 / 0.7)
    assert drift == pytest.approx(0.02 + 0.03 * step / 20)
    assert (other, last) == (pytest.approx(0.3), 20)
    shutil.rmtree(demo / "direct_align")
    write_run(demo / "direct_align", "Never moved", final_photo=0.2)
    assert "which both reached" not in page_of(demo)


def test_any_number_of_runs_and_equal_names(run_folder, tmp_path):
    """Runs of one name are called by their folders; every run has a row, a line and a colour."""
    for place in range(26):
        shutil.copytree(run_folder, tmp_path / f"run{place:02d}")
        if place == 1:
            html = page_of(tmp_path)
            assert "</span>run00" in html and "</span>SRPO" not in html
    html = page_of(tmp_path)
    assert "Images of 2 of 26 runs are left out" in html and len(html) < LIMIT
    rows = [attrs["data-run"] for tag, attrs in Tags(html).found if tag == "tr" and attrs]
    assert len({*rows}) == 26
    assert all(f'class="line {style}" points' in html for style in rows)
    colours = re.findall(r"--c: light-dark\(oklch\(\.52 \.15 ([\d.]+)\)", html)
    assert len({*colours}) == len(colours) == 26 - 7
