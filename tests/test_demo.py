"""The demo in small size: four runs, their summary and one page; finished runs are kept."""

import json
import re

import pytest

from directalign.config.load import load_run
from directalign.demo import LONGER, QUICK, demo
from directalign.report.read import read_run
from directalign.types import DirectAlignError

FORMS = {"srpo": "anchored", "direct_align": "absolute"}
FORMS |= {"srpo_long": "anchored", "official_long": "relative"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert demo(out, QUICK) == out / "report.html"
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
    assert longer.model_copy(update=changed) == srpo == load_run("world_srpo", QUICK)
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
        demo(folder, [*QUICK, "seed=5"])
    assert demo(folder, QUICK) == folder / "report.html"
    assert {file: file.read_bytes() for file in files} == before
