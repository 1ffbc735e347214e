"""The demo in miniature: four runs, their summary and one page; finished runs are kept, other
settings are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from directalign.config.load import load_run
from directalign.demo import LONGER, demo, summarise
from directalign.report.read import RunFiles, read_run
from directalign.types import DirectAlignError

NAMES = ["srpo", "direct_align", "srpo_long", "official_long"]
TINY = [
    "train.num_steps=2",
    "train.save_every=0",
    "train.sample_every=0",
    "train.sample_prompts=[a red star on a navy background]",
    "data.batch_size=2",
    "evaluate.num_samples=8",
    "evaluate.num_samples_during=4",
    "evaluate.every=0",
    "rollout.num_inference_steps=2",
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert demo(out, TINY) == out / "report.html"
    return out


def is_rate(found: dict[str, Any], n: int) -> bool:
    return (
        set(found) == {"value", "low", "high", "n"}
        and 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        and found["n"] == n
    )


def test_the_summary_has_what_others_rely_on(shown: Path) -> None:
    summary = json.loads((shown / "summary.json").read_text(encoding="utf-8"))
    for name in ("base", *NAMES):
        end = summary[name]
        assert set(end) == {"photo_rate", "content", "color_drift", "reward", "align_seconds"}, name
        assert is_rate(end["photo_rate"], 8) and is_rate(end["content"], 8)
        assert all(
            isinstance(end[key], float) for key in ("color_drift", "reward", "align_seconds")
        )
        assert (end["align_seconds"] == 0) == (name == "base")
    assert summary["seed"] == 0 and {"commit", "machine", "versions", "matched", "title"} <= set(
        summary
    )


def test_the_longer_runs_are_the_same_settings_for_three_times_the_updates(shown: Path) -> None:
    runs = {name: load_run(shown / name / "run.yaml") for name in NAMES}
    assert {name: run.train.num_steps for name, run in runs.items()} == {
        "srpo": 2,
        "direct_align": 2,
        "srpo_long": 2 * LONGER,
        "official_long": 2 * LONGER,
    }
    changed = {
        "train": runs["srpo"].train,
        "evaluate": runs["srpo"].evaluate,
        "name": runs["srpo"].name,
    }
    assert (
        runs["srpo_long"].model_copy(update=changed) == runs["srpo"] == load_run("world_srpo", TINY)
    )
    assert {name: run.method.form for name, run in runs.items()} == dict(
        zip(NAMES, ("anchored", "absolute", "anchored", "relative"), strict=True)
    )
    measured = [record["step"] for record in read_run(shown / "srpo_long").measured]
    assert measured == [0, 2, 4, 6]


def test_the_page_holds_every_run_by_name(shown: Path) -> None:
    page = (shown / "report.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert (shown / name / "report.html").is_file()
        assert load_run(shown / name / "run.yaml").name in page
    assert not re.search(r"""(src|href)=["']https?://""", page)


def test_a_second_call_trains_nothing(shown: Path) -> None:
    before = {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in shown.rglob("metrics.jsonl")
    }
    assert len(before) == len(NAMES)
    assert demo(shown, TINY) == shown / "report.html"
    assert {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in shown.rglob("metrics.jsonl")
    } == before


def test_finished_runs_of_other_settings_are_refused_by_name(shown: Path) -> None:
    before = (shown / "summary.json").read_bytes()
    with pytest.raises(
        DirectAlignError,
        match=r"srpo holds a finished run of other settings .*: remove .*srpo, or choose another",
    ):
        demo(shown, [*TINY, "seed=5"])
    assert (shown / "summary.json").read_bytes() == before


# --- compared at one photo rate
# ---------------------------------------------------------------------------------------


def planted(folder: Path, curve: list[tuple[int, float, float]]) -> RunFiles:
    """A run whose measurements are (step, photo rate, colour drift)."""
    folder.mkdir(parents=True)
    ends = [
        {
            "event": "evaluate",
            "step": step,
            "photo_rate": {"value": photo},
            "content": {"value": 1.0},
            "color_drift": drift,
            "reward": 0.5,
        }
        for step, photo, drift in curve
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ends))
    facts = {"seed": 0, "commit": "0123abc", "machine": {}, "versions": {}, "align_seconds": 3.0}
    (folder / "summary.json").write_text(
        json.dumps({"before": ends[0], "after": ends[-1], **facts})
    )
    return read_run(folder)


def test_drift_is_compared_where_both_reach_the_same_photo_rate(tmp_path: Path) -> None:
    ours = planted(tmp_path / "srpo", [(0, 0.1, 0.01), (10, 0.5, 0.03), (20, 0.9, 0.07)])
    theirs = planted(
        tmp_path / "direct_align", [(0, 0.1, 0.01), (10, 0.3, 0.2), (20, 0.7, 0.4), (30, 0.6, 0.5)]
    )
    summary = summarise({"srpo": ours, "direct_align": theirs})
    assert summary["matched"] == pytest.approx(
        {"photo_rate": 0.7, "srpo": 0.05, "direct_align": 0.4, "ratio": 0.125}
    )
    assert (
        summary["base"]["color_drift"] == 0.01
        and summary["srpo"]["color_drift"] == 0.07
        and summary["srpo"]["align_seconds"] == 3.0
    )


def test_nothing_is_compared_when_the_contrast_never_rises(tmp_path: Path) -> None:
    ours = planted(tmp_path / "srpo", [(0, 0.1, 0.01), (10, 0.9, 0.05)])
    theirs = planted(tmp_path / "direct_align", [(0, 0.1, 0.01), (10, 0.05, 0.4)])
    assert summarise({"srpo": ours, "direct_align": theirs})["matched"] is None
