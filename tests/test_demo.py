"""The demo in small size: three runs, their summary and one page; finished runs are kept."""

import json
import re

import pytest

from directalign.config.load import load_run
from directalign.demo import QUICK, demo
from directalign.types import DirectAlignError

FORMS = {"srpo": "anchored", "direct_align": "absolute", "official": "relative"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert demo(out, QUICK) == out / "report.html"
    return out


def test_the_summary_has_the_documented_fields(folder):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for name in ("base", *FORMS):
        end = summary[name]
        rates = {"photo_and_content", "photo_rate", "content"}
        assert set(end) == rates | {"color_drift", "reward", "align_seconds"}, name
        for rate in (end["photo_rate"], end["content"]):
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1 and rate["n"] == 8
        assert isinstance(end["color_drift"], float) and isinstance(end["reward"], float)
        assert (end["align_seconds"] == 0) == (name == "base")
    assert summary["seed"] == 0
    assert {"commit", "machine", "versions", "matched", "title"} <= set(summary)


def test_the_runs_have_one_base_and_one_budget(folder):
    runs = {name: load_run(folder / name / "run.yaml") for name in FORMS}
    assert {name: run.method.form for name, run in runs.items()} == FORMS
    assert runs["srpo"] == load_run("world2_srpo", QUICK)
    for run in runs.values():
        assert run.model == runs["srpo"].model and run.train.num_steps == 2


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
