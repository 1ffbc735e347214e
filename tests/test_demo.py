"""The demo in small size: four runs, their summary and one page; finished runs are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from directalign.config.load import load_run
from directalign.demo import LONGER, demo, summarise
from directalign.report.read import RunFiles, read_run
from directalign.types import DirectAlignError

FORMS = {"srpo": "anchored", "direct_align": "absolute"}
FORMS |= {"srpo_long": "anchored", "official_long": "relative"}
TINY = ["train.num_steps=2", "train.save_every=0", "train.sample_every=0", "data.batch_size=2"]
TINY += ["train.sample_prompts=[a red star on a navy background]", "evaluate.num_samples=8"]
TINY += ["evaluate.num_samples_during=4", "evaluate.every=0", "rollout.num_inference_steps=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert demo(out, TINY) == out / "report.html"
    return out


def test_the_summary_has_the_documented_fields(folder):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for name in ("base", *FORMS):
        end = summary[name]
        assert set(end) == {"photo_rate", "content", "color_drift", "reward", "align_seconds"}, name
        for rate in (end["photo_rate"], end["content"]):
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1 and rate["n"] == 8
        assert isinstance(end["color_drift"], float) and isinstance(end["reward"], float)
        assert (end["align_seconds"] == 0) == (name == "base")
    assert summary["seed"] == 0
    assert {"commit", "machine", "versions", "matched", "title"} <= set(summary)


def test_the_longer_runs_have_the_same_settings_and_three_times_the_updates(folder):
    runs = {name: load_run(folder / name / "run.yaml") for name in FORMS}
    assert [run.train.num_steps for run in runs.values()] == [2, 2, 2 * LONGER, 2 * LONGER]
    assert {name: run.method.form for name, run in runs.items()} == FORMS
    srpo, longer = runs["srpo"], runs["srpo_long"]
    changed = {"train": srpo.train, "evaluate": srpo.evaluate, "name": srpo.name}
    assert longer.model_copy(update=changed) == srpo == load_run("world_srpo", TINY)
    measured = [record["step"] for record in read_run(folder / "srpo_long").measured]
    assert measured == [0, 2, 4, 6]


def test_the_page_holds_every_run_by_name(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in FORMS:
        assert (folder / name / "report.html").is_file()
        assert load_run(folder / name / "run.yaml").name in page
    assert not re.search(r"""(src|href)=["']https?://""", page)


def test_finished_runs_are_kept_and_other_settings_refused(folder):
    files = [*folder.rglob("metrics.jsonl"), folder / "summary.json"]
    before = {file: file.read_bytes() for file in files}
    assert len(before) == len(FORMS) + 1
    message = "srpo holds a finished run of other settings .*: remove .*srpo, or choose another"
    with pytest.raises(DirectAlignError, match=message):
        demo(folder, [*TINY, "seed=5"])
    assert demo(folder, TINY) == folder / "report.html"
    assert {file: file.read_bytes() for file in files} == before


# --- compared at one photo rate -------------------------------------------------------------------


def planted(folder: Path, curve: list[tuple[int, float, float]]) -> RunFiles:
    """A run whose measurements are (step, photo rate, colour drift)."""
    folder.mkdir(parents=True)
    ends = []
    for step, photo, drift in curve:
        rates = {"photo_rate": {"value": photo}, "content": {"value": 1.0}, "color_drift": drift}
        ends.append({"event": "evaluate", "step": step, **rates, "reward": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ends))
    facts = {"seed": 0, "commit": "0123abc", "machine": {}, "versions": {}, "align_seconds": 3.0}
    summary = {"before": ends[0], "after": ends[-1], **facts}
    (folder / "summary.json").write_text(json.dumps(summary))
    return read_run(folder)


def test_drift_is_compared_where_both_reach_the_same_photo_rate(tmp_path):
    ours = planted(tmp_path / "srpo", [(0, 0.1, 0.01), (10, 0.5, 0.03), (20, 0.9, 0.07)])
    curve = [(0, 0.1, 0.01), (10, 0.3, 0.2), (20, 0.7, 0.4), (30, 0.6, 0.5)]
    theirs = planted(tmp_path / "direct_align", curve)
    summary = summarise({"srpo": ours, "direct_align": theirs})
    wanted = {"photo_rate": 0.7, "srpo": 0.05, "direct_align": 0.4, "ratio": 0.125}
    assert summary["matched"] == pytest.approx(wanted)
    drifts = [summary[name]["color_drift"] for name in ("base", "srpo")]
    assert drifts == [0.01, 0.07] and summary["srpo"]["align_seconds"] == 3.0
    falling = planted(tmp_path / "falling", [(0, 0.1, 0.01), (10, 0.05, 0.4)])
    assert summarise({"srpo": ours, "direct_align": falling})["matched"] is None
